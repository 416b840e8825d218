"""Micro-batches that are too large for the memory: halved, and accumulated twice as often."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

from slm.data.datamodule import StoryData
from slm.errors import is_out_of_memory
from slm.training.runs import Run


class SmallerBatch(NamedTuple):
    """How to continue after running out of memory.

    Numbers and paths only, so that nothing keeps the memory allocated.
    """

    batch_size: int
    """Windows per micro-batch."""
    accumulate: int
    """Micro-batches per step: a step trains on the same windows."""
    checkpoint: Path | None
    """Where training stopped, if it had taken a step."""


class StageAtError(Callback):
    """Remembers whether an error came from a training step; the Trainer forgets it."""

    training = False

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Stores the Trainer's stage."""
        self.training = trainer.training


def smaller_batch(
    error: RuntimeError, trainer: Trainer, data: StoryData, stage: StageAtError
) -> SmallerBatch | None:
    """How to continue after an error; None if smaller micro-batches would not help.

    They do not if the memory was not exhausted, a micro-batch is a single window already, the error
    came from a validation, steps would be lost, or there are several processes, each of which would
    have to know of the others' errors.
    """
    possible = stage.training and data.batch_size > 1 and trainer.world_size == 1
    if not possible or not is_out_of_memory(error):
        return None
    last = Run(Path(trainer.log_dir)).checkpoint("last") if trainer.log_dir else None
    trained = trainer.global_step > data.first_step
    if trained and not (last and last.exists()):
        return None
    parts = next(n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0)
    smaller = SmallerBatch(
        data.batch_size // parts, trainer.accumulate_grad_batches * parts, last if trained else None
    )
    print(
        f"Memory     {data.batch_size} windows at once do not fit; continuing with "
        f"{smaller.batch_size}, {smaller.accumulate} times a step: the same batch",
        file=sys.stderr,
    )
    return smaller
