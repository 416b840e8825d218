"""Micro-batches that turn out too large for the memory: halved, and accumulated twice as often."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from slm.commands.lookup import take_option
from slm.data.datamodule import StoryData
from slm.training.memory import is_out_of_memory
from slm.training.module import StoryModel


@dataclass
class TooLargeError(Exception):
    """Training ran out of memory, and smaller micro-batches may help.

    Raised with numbers and paths only, so that nothing keeps the memory alive.
    """

    batch_size: int
    """Windows per micro-batch to go on with."""
    accumulate: int
    """Micro-batches per step to go on with: the step trains on the same windows."""
    checkpoint: Path | None
    """Where it stopped, if it had taken a step."""

    def command_line(self, words: list[str]) -> list[str]:
        """The command line to go on with."""
        words = list(words)
        if self.checkpoint:
            take_option(words, "--ckpt_path")
            words.append(f"--ckpt_path={self.checkpoint}")
        for name in ("--data.batch_size", "--trainer.accumulate_grad_batches"):
            take_option(words, name)
        return [
            *words,
            f"--data.batch_size={self.batch_size}",
            f"--trainer.accumulate_grad_batches={self.accumulate}",
        ]


@contextmanager
def too_large_noticed(trainer: Trainer, model: StoryModel, data: StoryData) -> Iterator[None]:
    """Around `Trainer.fit`: turns running out of memory into `TooLargeError`.

    Not where windows come singly already, nor in a validation, whose batches are others, nor with
    several processes, of which each would have to know of the others' trouble.

    Raises:
        TooLargeError: Smaller micro-batches may help.
    """
    stages: list[bool] = []  # the Trainer has forgotten when the error gets here
    trainer.callbacks.append(  # type: ignore[attr-defined]
        LambdaCallback(on_exception=lambda at, *_: stages.append(at.training))
    )
    try:
        yield
    except RuntimeError as error:
        hopeless = data.batch_size == 1 or trainer.world_size > 1 or stages != [True]
        if not is_out_of_memory(error) or hopeless:
            raise
        model.release_memory()
        parts = next(n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0)
        smaller = TooLargeError(
            data.batch_size // parts,
            trainer.accumulate_grad_batches * parts,
            None,
        )
        last = Path(trainer.log_dir) / "checkpoints" / "last.ckpt" if trainer.log_dir else None
        if trainer.global_step > data.first_step:
            if not last or not last.exists():
                raise  # steps would be lost without a word
            smaller.checkpoint = last
        print(
            f"Memory     {data.batch_size} windows at once are too many for it; going on with "
            f"{smaller.batch_size}, {smaller.accumulate} times a step: the same batch",
            file=sys.stderr,
        )
        raise smaller from None
