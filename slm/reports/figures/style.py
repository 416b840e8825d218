"""Common style of all figures: colours that colour-blind people can distinguish, print sizes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito, "Color Universal Design" (2008), those that are dark enough for a line first."""
DASHES = ("-", "--", "-.", ":")
MAP = "viridis"
"""Monotonic in brightness, so that it also works in grey prints."""
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay letters: small files, and text that can be searched
    "svg.hashsalt": "slm",  # the same picture is the same file
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure


def style() -> Any:
    """The context in which axes are created and drawn."""
    return rc_context(_STYLE)


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure in the format of the path's ending, PNG or SVG."""
    with style():
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)
    return path


def as_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as the contents of a PNG or SVG file."""
    buffer = io.BytesIO()
    with style():
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    return buffer.getvalue()


def as_array(figure: Figure) -> npt.NDArray[np.uint8]:
    """A figure as pixels, (height, width, 3)."""
    canvas: Any = figure.canvas
    with style():
        figure.set_dpi(110)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
