"""When checkpoints are written: the best by validation loss, the last by steps."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def best_checkpoint() -> ModelCheckpoint:
    """Keeps `best.ckpt`: the weights with the lowest `val_loss` so far."""
    return ModelCheckpoint(
        monitor="val_loss", mode="min", filename="best", enable_version_counter=False
    )


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: every so many steps, at the end, and when the run is interrupted.

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
