"""The curves of runs: loss, learning rate, gradient norm, throughput."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from slm.reports.figures.style import COLORS, DASHES, new_figure, style

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunCurves:
    """The logged curves of a run."""

    folder: Path
    scalars: dict[str, tuple[Values, Values]]
    """Optimizer steps and values, by name."""
    stories: list[tuple[int, str]]
    """The sampled stories, with their steps."""
    name: str
    """The run's name in figures."""

    def tokens(self, steps: Values) -> Values:
        """Tokens seen at some steps, for a run that logged them."""
        known, seen = self.scalars["tokens_seen"]
        # In proportion to the steps, between two log points and after the last one.
        per_step = seen[-1] / known[-1] if known[-1] else 0.0
        known, seen = np.append(0.0, known), np.append(0.0, seen)
        beyond = np.maximum(0.0, steps - known[-1]) * per_step
        return np.asarray(np.interp(steps, known, seen) + beyond)

    def best(self, name: str = "val_loss") -> float | None:
        """The lowest value of a curve, if the run has it."""
        return float(self.scalars[name][1].min()) if name in self.scalars else None


def read_events(folder: Path) -> Any:
    """TensorBoard's `EventAccumulator` of a run, with all its scalars and texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It reports what a resumed run has replaced, which is as it should be.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    sizes = {"scalars": 0, "tensors": 0, "images": 1, "histograms": 1, "compressedHistograms": 1}
    events = EventAccumulator(str(folder), size_guidance=sizes)
    events.Reload()
    return events


def read_run(folder: Path, name: str | None = None) -> RunCurves:
    """Reads a run's TensorBoard files; `name` replaces the folder's name in figures.

    If a resumed run logged a step again, the later point counts.
    """
    events = read_events(folder)
    tags = events.Tags()
    scalars = {}
    for tag in tags["scalars"]:
        points = {point.step: point.value for point in events.Scalars(tag)}
        # A loss that is not finite is left out.
        steps = sorted(step for step, value in points.items() if math.isfinite(value))
        if not steps:
            continue
        scalars[tag] = (np.array(steps, float), np.array([points[s] for s in steps], float))
    texts: dict[int, str] = {}
    if "story/text_summary" in tags["tensors"]:
        for event in events.Tensors("story/text_summary"):
            written = event.tensor_proto.string_val[0].decode("utf-8", "replace")
            texts[event.step] = written.replace("  \n", "\n")
    return RunCurves(folder, scalars, sorted(texts.items()), name or folder.resolve().name)


def _x_axis(runs: Sequence[RunCurves]) -> tuple[str, Callable[[RunCurves, Values], Values]]:
    """Label and values of the x axis: tokens, or steps if a run did not log its tokens."""
    if all("tokens_seen" in run.scalars for run in runs if run.scalars):
        return "million tokens seen", lambda run, steps: run.tokens(steps) / 1e6
    return "optimizer steps", lambda run, steps: steps


def draw_loss(runs: Sequence[RunCurves]) -> Figure | None:
    """Training and validation loss, linear and logarithmic; None if there is none.

    In all figures here the x axis is the tokens seen, and a run has the same colour and dashes.
    """
    if not any({"train_loss", "val_loss"} & set(run.scalars) for run in runs):
        return None
    figure = new_figure(9, 4.2)
    with style():
        for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
            _draw_losses(axes, runs)
            axes.set_yscale(scale)
            axes.set_ylabel(f"loss, nats per token{' (log)' if scale == 'log' else ''}")
            if scale == "log":
                axes.set_xscale("log")
                axes.set_xlabel(f"{_x_axis(runs)[0]} (log)")
                _label_log(axes.xaxis)
                _label_log(axes.yaxis)
            else:
                axes.legend()
        figure.suptitle("Loss" if len(runs) > 1 else f"Loss of {runs[0].name}")
    return figure


_SUBS = ((1, (1, 1.5, 2, 3, 4, 5, 6, 8)), (3, (1, 2, 5)), (8, (1,)))
"""The labels in each decade, on axes of at most so many decades."""


def _label_log(axis: Axis) -> None:
    """Labels a logarithmic axis that has its data, with few enough labels to be legible."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    subs = next((subs for most, subs in _SUBS if decades <= most), None)
    axis.set_major_locator(LogLocator(subs=subs) if subs else LogLocator())
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_losses(axes: Axes, runs: Sequence[RunCurves]) -> None:
    several = len(runs) > 1
    label_x, x_of = _x_axis(runs)
    for number, run in enumerate(runs):
        color = COLORS[number % len(COLORS)]
        if "train_loss" in run.scalars:
            steps, losses = run.scalars["train_loss"]
            alone = f"{run.name}, training" if "val_loss" not in run.scalars else None
            label = alone if several else "training"
            axes.plot(
                x_of(run, steps), losses, color=color, lw=0.8 if several else 1.1,
                alpha=0.5 if several else 1.0, label=label,
            )  # fmt: skip
        if "val_loss" in run.scalars:
            steps, losses = run.scalars["val_loss"]
            label = f"{run.name if several else 'validation'}, best {losses.min():.3f}"
            if "val_bits_per_byte" in run.scalars:
                label += f" ({run.scalars['val_bits_per_byte'][1].min():.3f} bits/byte)"
            axes.plot(
                x_of(run, steps), losses, color=color if several else COLORS[1], marker="o",
                ms=4, lw=1.6, ls=DASHES[number % len(DASHES)], label=label,
            )  # fmt: skip
    axes.set_xlabel(label_x)


def draw_bits_per_byte(runs: Sequence[RunCurves]) -> Figure | None:
    """Bits per byte of the validation split, which compare runs with different vocabularies."""
    return _draw_one(runs, "val_bits_per_byte", "bits per byte, validation")


def draw_learning_rate(runs: Sequence[RunCurves]) -> Figure | None:
    """The learning rate."""
    return _draw_one(runs, "lr", "learning rate")


def draw_gradient_norm(runs: Sequence[RunCurves]) -> Figure | None:
    """The gradient's norm before clipping."""
    return _draw_one(runs, "grad_norm", "gradient norm before clipping", log=True)


def draw_throughput(runs: Sequence[RunCurves]) -> Figure | None:
    """Tokens per second between log points."""
    return _draw_one(runs, "tokens_per_second", "tokens per second", zero=True)


def _draw_one(
    runs: Sequence[RunCurves], name: str, label: str, log: bool = False, zero: bool = False
) -> Figure | None:
    drawn = [(index, run) for index, run in enumerate(runs) if name in run.scalars]
    if not drawn:
        return None
    figure = new_figure(7, 3.0)
    label_x, x_of = _x_axis(runs)
    with style():
        axes = figure.subplots()
        for number, run in drawn:
            steps, values = run.scalars[name]
            options: dict[str, Any] = {"marker": "o", "ms": 4} if len(steps) < 30 else {}
            axes.plot(
                x_of(run, steps), values, color=COLORS[number % len(COLORS)], lw=1.2,
                ls=DASHES[number % len(DASHES)], label=run.name, **options,
            )  # fmt: skip
        if log and all((run.scalars[name][1] > 0).all() for _, run in drawn):
            axes.set_yscale("log")
            _label_log(axes.yaxis)
        if zero:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(label_x)
        axes.set_ylabel(label)
        of = "" if len(runs) > 1 else f" of {runs[0].name}"
        axes.set_title(f"{label[0].upper()}{label[1:]}{of}", loc="left")
        if len(runs) > 1:
            axes.legend()
    return figure


CURVES: dict[str, Callable[[Sequence[RunCurves]], Figure | None]] = {
    "loss": draw_loss,
    "bits-per-byte": draw_bits_per_byte,
    "learning-rate": draw_learning_rate,
    "gradient-norm": draw_gradient_norm,
    "throughput": draw_throughput,
}
"""The figures of a run's curves, by the names of their files."""
