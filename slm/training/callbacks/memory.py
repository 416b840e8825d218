"""Memory of a training process: reused and cleaned up between steps."""

import gc
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from slm.training.memory import keep_freed_memory, return_freed_memory


class ReuseMemory(Callback):
    """Keeps freed memory for the next step on a CPU, and cleans up after the first step.

    Compiling leaves much garbage, and the optimizer's state, allocated in the first step, is spread
    over what the first pass has freed.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step
        if pl_module.device.type == "cpu":
            keep_freed_memory()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._first_step + 1:
            self._first_step = -1
            return_freed_memory()


class ManualGarbageCollection(Callback):
    """Collects garbage at validations and every `interval` batches, not in the middle of a step.

    The collector examines every object whenever enough new ones have been created: with torch and
    its compiler loaded a pause of tenths of a second, while a GPU waits. Objects that exist after
    the first batch, those of the compiler included, are excluded from later collections.
    """

    def __init__(self, interval: int = 1000) -> None:
        self.interval = interval
        self._started = False
        self._was_on = False

    def on_train_start(self, *_: Any) -> None:
        self._started = False

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._started:
            self._started, self._was_on = True, gc.isenabled()
            gc.collect()
            gc.freeze()
            gc.disable()
        elif (batch_idx + 1) % self.interval == 0:
            gc.collect()

    def on_validation_start(self, *_: Any) -> None:
        gc.collect()

    def on_exception(self, *_: Any) -> None:
        self.teardown()  # Lightning does not call it after an error

    def teardown(self, *_: Any, **__: Any) -> None:
        if self._was_on:
            gc.unfreeze()
            gc.enable()
            self._was_on = False
