"""When and how checkpoints are written: the best by validation loss, the last by steps."""

import os
import shutil
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from slm.errors import UserError


def best_checkpoint() -> ModelCheckpoint:
    """Keeps `best.ckpt`: the weights with the lowest `val_loss` so far."""
    return ModelCheckpoint(
        monitor="val_loss", mode="min", filename="best", enable_version_counter=False
    )


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: every so many steps, at the end, and when the run is interrupted.

    Where a validation follows, the file is written again after it, so that it knows the best loss.

    Args:
        interval: Optimizer steps between two writings.
    """

    def __init__(self, interval: int) -> None:
        super().__init__(
            filename="last",
            every_n_train_steps=interval,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self.interval = interval

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes at the interval, and at the step after which training stops."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.should_stop and trainer.global_step % self.interval:
            trainer.save_checkpoint(self.format_checkpoint_name({}))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes again what was written at this step."""
        due = trainer.should_stop or trainer.global_step % self.interval == 0
        if due and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.format_checkpoint_name({}))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and moves the file into place when it is whole.

    Lightning's own way goes through the folder for temporary files: if that is another file
    system, the last step is a copy, and a run killed in the middle of it has no checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes a checkpoint to `path`: all of it or nothing.

        Raises:
            UserError: The disk refuses it.
        """
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{os.fspath(path)}.tmp-{os.getpid()}"
        try:
            torch.save(checkpoint, temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            free = shutil.disk_usage(os.path.dirname(path)).free / 1e6
            raise UserError(
                f"the checkpoint {os.fspath(path)} cannot be written: "
                f"{str(error).splitlines()[0]}; {free:,.1f} MB are free",
                "a writable folder with enough free space; an earlier checkpoint is kept",
                "make room, or train elsewhere: --trainer.default_root_dir FOLDER",
            ) from error
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
