"""The distribution of a network's weights, part by part and layer by layer."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from slm.model import GPT
from slm.reports.figures.style import COLORS, new_figure, style

PARTS = ("attention, in", "attention, out", "MLP, up", "MLP, down")


def weight_groups(model: GPT) -> dict[str, dict[str, Tensor]]:
    """The matrices of a network: by row (`embeddings and output`, `layer 1`, …) and part."""
    first = {"token embedding": model.token_embedding.weight}
    if model.config.position == "learned":
        first["position embedding"] = model.position_embedding.weight
    # Tied, it is the first one again, under the name of its other use.
    first["output head"] = model.head_weight
    rows: dict[str, dict[str, Tensor]] = {"embeddings and output": first}
    names = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
    for number, block in enumerate(model.blocks, 1):
        matrices = (block.get_parameter(f"{name}.weight") for name in names)
        rows[f"layer {number}"] = dict(zip(PARTS, matrices, strict=True))
    return {
        row: {part: weight.detach() for part, weight in parts.items()}
        for row, parts in rows.items()
    }


def draw_weights(model: GPT, about: str = "") -> Figure:
    """A histogram for each matrix; in a column, all layers have the same axes.

    `about` names the model in the title.
    """
    groups = weight_groups(model)
    figure = new_figure(9, 1.0 + 1.25 * len(groups))
    with style():
        grid = figure.subplots(len(groups), 4, squeeze=False)
        for column, part in enumerate(PARTS):
            reach = max(_reach(row[part]) for row in groups.values() if part in row)
            for axes, row in zip(grid[1:, column], list(groups.values())[1:], strict=True):
                _draw_histogram(axes, row[part], reach, COLORS[column % len(COLORS)])
            grid[1, column].set_title(part)
        for axes in grid[0]:
            axes.set_axis_off()
        for axes, (part, weight) in zip(
            grid[0], groups["embeddings and output"].items(), strict=False
        ):
            axes.set_axis_on()
            _draw_histogram(axes, weight, _reach(weight), COLORS[6])
            tied = part == "output head" and model.config.tied
            axes.set_title(f"{part}{' (tied)' if tied else ''}")
        for axes, name in zip(grid[:, 0], groups, strict=True):
            axes.set_ylabel(name.replace(" and ", "\nand "))
        for axes in grid[-1]:
            axes.set_xlabel("weight")
        of = f" of {about}" if about else ""
        figure.suptitle(f"Weights{of}: share in each of 60 bins, σ the standard deviation")
    return figure


def _reach(weight: Tensor) -> float:
    """Half the width of the axes: four standard deviations, or the largest value."""
    return max(1e-6, min(float(weight.abs().max()), 4 * float(weight.float().std())))


def _draw_histogram(axes: Axes, weight: Tensor, reach: float, color: str) -> None:
    values = weight.float().cpu().numpy().ravel()
    counts, edges = np.histogram(values, bins=60, range=(-reach, reach))
    axes.stairs(counts / len(values), edges, fill=True, color=color, alpha=0.75)
    axes.set_yticks([])
    axes.grid(False)
    axes.text(
        0.98, 0.95, f"σ {values.std():.3g}", transform=axes.transAxes, ha="right", va="top",
        fontsize=7.5,
    )  # fmt: skip
