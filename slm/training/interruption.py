"""Ctrl-C between two batches instead of anywhere."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from lightning.pytorch import Callback


class Interruption(Callback):
    """While entered, lets an interrupt take effect before the next batch.

    Python raises KeyboardInterrupt wherever it happens to be: between the halves of an optimizer
    step, whose weights would then be saved, or in a destructor, where it is lost. Here the first
    Ctrl-C is noted and raised at the next batch, of training or validation; a second one, or one
    while no batches are running, is raised at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._running = False
        self._previous: Any = None

    def __enter__(self) -> "Interruption":
        # Signals belong to the main thread; elsewhere Python's own way has to do.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._running:
            raise KeyboardInterrupt
        self._asked = True
        print("\nStopping before the next batch; Ctrl-C again stops at once.", file=sys.stderr)

    def _check(self) -> None:
        self._running = True
        if self._asked:
            raise KeyboardInterrupt

    def on_train_batch_start(self, *_: Any) -> None:
        """The place to stop at in training."""
        self._check()

    def on_validation_batch_start(self, *_: Any) -> None:
        """The place to stop at in a validation."""
        self._check()

    def on_train_end(self, *_: Any) -> None:
        """No more batches: from here on an interrupt is raised at once."""
        self._running = False
