"""Validations that Lightning's interval leaves out."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LastStep(Callback):
    """Validates once more at the last step, whatever the interval, so that it can be the best."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks for the stop, which Lightning precedes by a validation, at `max_steps`."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class PendingValidation(Callback):
    """Makes up for a validation in which a run was stopped, before training continues."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._extra_step = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that a validation has begun."""
        if trainer.state.fn == "fit":
            self._step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that it has ended; comes before the checkpoints, which Lightning calls last."""
        self._step = None

    def state_dict(self) -> dict[str, Any]:
        """The step of a validation that has begun and not ended."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up that step."""
        self._step = state_dict["step"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets a run begin that has no step left to train."""
        if self._step is not None and 0 < trainer.max_steps <= self._step:
            self._extra_step = 1
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the validation, if there is one to run; Lightning would leave it out."""
        if self._extra_step:
            trainer.fit_loop.epoch_loop.max_steps -= self._extra_step
            trainer.should_stop = True
        if self._step is not None:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
