"""Python's garbage collector between steps instead of in them."""

import gc
from typing import Any

from lightning.pytorch import Callback


class ManualGarbageCollection(Callback):
    """Collects garbage at validations and every so many batches, not in the middle of a step.

    The collector examines every object whenever enough new ones have been created: with torch and
    its compiler loaded a pause of tenths of a second, while a GPU waits. Objects that exist after
    the first batch, those of the compiler included, are excluded from later collections.

    Args:
        interval: Batches between two collections.
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
