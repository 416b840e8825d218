"""What every export target provides: how it is written, and how it is opened again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from slm.data.tokenizer import Tokenizer
from slm.model import GPT
from slm.training.checkpoint import Checkpoint

Logits = Callable[[Tensor], Tensor]
"""From token ids (1, T), int64, to logits (1, T, V), float32."""


@dataclass(frozen=True)
class TrainedModel:
    """What is exported."""

    checkpoint: Checkpoint
    model: GPT
    """On the CPU, in float32 and evaluation mode."""
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Target:
    """A format in which a model leaves the project."""

    write: Callable[[TrainedModel, Path], None]
    """Writes files into an empty folder; raises a UserError if the model has no such form."""
    reopen: Callable[[Path], Mapping[str, Logits]]
    """Opens what was written with the format's own reader: the network in each file, by name."""
    tolerance: Callable[[str], float]
    """The largest difference of a logit that is rounding, for a file by its name; infinite where
    the weights themselves are rounded."""
