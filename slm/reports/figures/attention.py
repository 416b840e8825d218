"""Heat maps of attention: one head with its tokens, and all heads side by side.

Shape suffixes: L layers, H heads, T positions.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from slm.data.tokenizer import Tokenizer
from slm.model import GPT
from slm.model.attention_maps import attention_maps
from slm.reports.figures.style import MAP, new_figure, style

MOST_TOKENS = 48
"""More labels than this are illegible."""


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """A token as a label: a space is a middle dot, a line break an arrow, end-of-text a word.

    Characters that the figures' font lacks are boxes.
    """
    if token == tokenizer.end_of_text:
        return "<end>"
    # matplotlib takes a pair of dollar signs for mathematics.
    text = tokenizer.decode([token]).replace("$", r"\$")
    text = text.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(sign if sign in _drawable() else "□" for sign in text) or "□"


@functools.cache
def _drawable() -> frozenset[str]:
    """The characters of the labels' font."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans Mono"))
    return frozenset(sign for code in font.get_charmap() if (sign := chr(code)).isprintable())


def maps_of_text(
    model: GPT, tokenizer: Tokenizer, text: str, most: int = MOST_TOKENS
) -> tuple[list[int], Tensor]:
    """The attention weights of a text's beginning, after the end-of-text that begins a story.

    Reads at most `most` tokens, and what fits into the context of a model in evaluation mode.

    Returns:
        The token ids, and weights (L, H, T, T) on the CPU.
    """
    room = min(most, model.config.block_size)
    tokens = [tokenizer.end_of_text, *tokenizer.encode(text)][:room]
    device = model.token_embedding.weight.device
    return tokens, attention_maps(model, torch.tensor(tokens, device=device)).float().cpu()


def draw_head(weights_TT: Tensor, labels: Sequence[str], title: str) -> Figure:
    """One head: each row attends to columns, and sums to one.

    Colours follow the square root, here and in `draw_heads`, so that faint attention is visible.
    """
    size = max(4.0, 1.6 + 0.17 * len(labels))
    figure = new_figure(size + 0.8, size)
    with style():
        axes = figure.subplots()
        image = axes.imshow(weights_TT.sqrt().numpy(), cmap=MAP, vmin=0.0, vmax=1.0)
        positions = list(range(len(labels)))
        axes.set_xticks(positions, labels, rotation=90, family="DejaVu Sans Mono", fontsize=7.5)
        axes.set_yticks(positions, labels, family="DejaVu Sans Mono", fontsize=7.5)
        axes.grid(False)
        axes.set_xlabel("is looked at")
        axes.set_ylabel("looks")
        axes.set_title(title, wrap=True)
        _add_bar(figure, image, axes)
    return figure


def _add_bar(figure: Figure, image: AxesImage, axes: Axes) -> None:
    """A colour bar for square roots."""
    weights = (0.0, 0.01, 0.1, 0.3, 0.6, 1.0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[weight**0.5 for weight in weights])
    bar.ax.set_yticklabels([f"{weight:g}" for weight in weights])
    bar.set_label("attention weight")


def draw_heads(maps_LHTT: Tensor, title: str = "All heads") -> Figure:
    """Every head of every layer in one picture: layers downwards, heads from left to right."""
    layers, heads, T, _ = maps_LHTT.shape
    gap = max(1, T // 16)
    canvas = np.full((layers * (T + gap) - gap, heads * (T + gap) - gap), np.nan)
    for layer in range(layers):
        for head in range(heads):
            top, left = layer * (T + gap), head * (T + gap)
            canvas[top : top + T, left : left + T] = maps_LHTT[layer, head].sqrt().numpy()
    figure = new_figure(1.6 + 1.25 * heads, 1.2 + 1.25 * layers)
    with style():
        axes = figure.subplots()
        image = axes.imshow(canvas, cmap=MAP, vmin=0.0, vmax=1.0, interpolation="nearest")
        middle = (T - 1) / 2
        for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
            axis.set_ticks([n * (T + gap) + middle for n in range(count)])
            axis.set_ticklabels([str(n) for n in range(1, count + 1)])
        axes.tick_params(length=0)
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.set_title(title, wrap=True)
        _add_bar(figure, image, axes)
    return figure
