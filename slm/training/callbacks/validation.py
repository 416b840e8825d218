"""Validations that Lightning's interval leaves out."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LastStep(Callback):
    """Validates once more at the last step, so that it can be the best.

    It asks Lightning to stop, which Lightning precedes by a validation.
    """

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class PendingValidation(Callback):
    """Repeats a validation in which a run was stopped, before training continues.

    Its state is the step of a validation that has begun and not ended.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._extra_step = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = None  # before the checkpoints, which Lightning calls last

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step = state_dict["step"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lets a run start that has no step left to train.
        if self._step is not None and 0 < trainer.max_steps <= self._step:
            self._extra_step = 1
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._extra_step:
            trainer.fit_loop.epoch_loop.max_steps -= self._extra_step
            trainer.should_stop = True
        if self._step is not None:  # Lightning would leave it out
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
