"""Python's garbage collector between steps instead of in them."""

import gc
from typing import Any

from lightning.pytorch import Callback


class ManualGarbageCollection(Callback):
    """Collects garbage at validations and every so many batches, not in the middle of a step.

    The collector looks through every object there is whenever enough new ones have come: with
    torch and its compiler loaded a pause of tenths of a second, while a GPU waits. What is there
    when training begins is left out of its searches, so that those in between take little.

    Args:
        interval: Batches between two collections.
    """

    def __init__(self, interval: int = 1000) -> None:
        self.interval = interval
        self._started = False
        self._was_on = False

    def on_train_start(self, *_: Any) -> None:
        """Waits for the first batch: what compiling makes is to be left out, too."""
        self._started = False

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collects at the interval; behind the first batch stops the automatic collections."""
        if not self._started:
            self._started, self._was_on = True, gc.isenabled()
            gc.collect()
            gc.freeze()
            gc.disable()
        elif (batch_idx + 1) % self.interval == 0:
            gc.collect()

    def on_validation_start(self, *_: Any) -> None:
        """Collects: nobody waits for a step now."""
        gc.collect()

    def on_exception(self, *_: Any) -> None:
        """Leaves the collector as it was: after an error Lightning calls no `teardown`."""
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leaves the collector as it was."""
        if self._was_on:
            gc.unfreeze()
            gc.enable()
            self._was_on = False
