"""Signals that ask to stop, and readers of our output that go away."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from slm.errors import Stopped

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows has only the first two
)
"""Ctrl-C; `kill`, `docker stop` and batch systems; a closed terminal; SLURM's `--signal=USR1`."""

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handled_by(handler: Handler, signals: tuple[signal.Signals, ...] = STOPPING) -> Iterator[None]:
    """Lets a function handle signals for a while.

    One that the surroundings want to be ignored, as `nohup` does for SIGHUP, stays ignored. Not so
    SIGINT: shells ignore it for whatever a script starts in the background.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # signals are the main thread's
        before = {number: signal.getsignal(number) for number in signals}
    before = {
        number: old
        for number, old in before.items()
        if number == signal.SIGINT or old is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """Raises at once; the same signal again ends the process without further ado.

    Raises:
        Stopped: Always.
    """
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


class LastingStream:
    """A text stream that a run can outlive.

    The first write that fails, because the reader has gone (`2>&1 | head`, a killed `tee`, a closed
    terminal), redirects the rest to nowhere: a run does not end, nor count as finished, because
    nobody watches it any more.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes text, as far as there is somewhere to write it to."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        # The descriptor, not the object: what is still in buffers must not fail at exit either.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output(*names: str) -> Iterator[None]:
    """Makes `sys.stdout` or `sys.stderr`, or both, lasting for a while."""
    before = {name: getattr(sys, name) for name in names}
    for name, stream in before.items():
        if stream is not None:
            setattr(sys, name, LastingStream(stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)
