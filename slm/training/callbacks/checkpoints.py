"""When and how checkpoints are written: the best by validation loss, the last by steps."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from slm.errors import CheckpointError, UserError
from slm.training.checkpoint import open_checkpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`: the weights with the lowest `val_loss` so far.

    The loss to beat is read from `best.ckpt` itself. Lightning stores it with the path of the run's
    folder, and ignores it once that has been moved, copied or linked.
    """

    def __init__(self) -> None:
        super().__init__(
            monitor="val_loss", mode="min", filename="best", enable_version_counter=False
        )

    def on_load_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and self.dirpath and trainer.ckpt_path:
            folder = Path(self.dirpath)
            if Path(trainer.ckpt_path).resolve().parent == folder.resolve():
                self._take_up(trainer, folder / "best.ckpt")

    def _take_up(self, trainer: Trainer, path: Path) -> None:
        score = _best_score(path) if trainer.is_global_zero else None
        score = trainer.strategy.broadcast(score)
        self.best_k_models = {} if score is None else {str(path): torch.tensor(score)}
        self.best_model_score = self.kth_value = self.best_k_models.get(str(path))  # type: ignore[assignment]
        self.best_model_path = self.kth_best_model_path = "" if score is None else str(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        failed = getattr(trainer.strategy.checkpoint_io, "failed", False)
        if self.dirpath and trainer.strategy.broadcast(failed):
            self._take_up(trainer, Path(self.dirpath) / "best.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: best.ckpt itself is authoritative."""


def _best_score(path: Path) -> float | None:
    """The validation loss of a `best.ckpt`; None if it cannot be read."""
    try:
        return open_checkpoint(path).best_loss
    except UserError:
        return None


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: every `interval` optimizer steps, at the end, and when the run is stopped.

    If a step is followed by a validation, it is written after that, so that it contains the best
    loss and no validation is lost.
    """

    def __init__(self, interval: int) -> None:
        super().__init__(
            filename="last",
            every_n_train_steps=interval,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self.interval = interval
        self._begun_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begun_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = trainer.should_stop or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0
        if due and trainer.enable_validation:
            return  # it will be written after the validation
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.should_stop and trainer.global_step % self.interval:
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = trainer.should_stop or trainer.global_step % self.interval == 0
        if due and trainer.state.fn == "fit":
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes the last complete step, unless writing has failed, or a process is missing."""
        if self._begun_at is None or trainer.global_step == self._begun_at:
            return  # no step since the checkpoint that was loaded, if any
        together = trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt)
        if not together or isinstance(exception, CheckpointError):
            return
        try:
            super().on_exception(trainer, pl_module, exception)
        except UserError:
            if not isinstance(exception, UserError):  # else the first one is the cause
                raise

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Flushes the curves first: a resumed run must find all points before its checkpoint."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()
        super()._save_checkpoint(trainer, filepath)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: the state contains paths of the process that wrote it."""
