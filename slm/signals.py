"""Signals that request a stop, and output whose reader has exited."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
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
    """Installs a handler temporarily; without effect outside the main thread.

    Ignored signals stay ignored, such as SIGHUP by `nohup`. An exception is SIGINT, which shells
    ignore for every background process of a script.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            old = signal.getsignal(number)
            if number == signal.SIGINT or old is not signal.SIG_IGN:
                before[number] = old
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """Raises `Stopped`; a second signal of the kind ends the process immediately."""
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


class LastingStream:
    """A text stream that discards its output after its reader has exited.

    The reader may be `2>&1 | head`, a killed `tee` or a closed terminal. The run continues: the
    first write that fails redirects the stream to the null device.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes text, or discards it."""
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
        # Replaces the descriptor, so that flushing buffers at exit cannot fail either.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing_streams() -> None:
    """Opens closed standard streams on the null device, and makes encoding errors impossible.

    Otherwise the next file opened would reuse the closed stream's descriptor. Characters that a
    stream cannot encode are printed as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
        if getattr(sys, name) is None:
            os.set_inheritable(number, True)  # as for the streams of any process
            mode = "w" if number else "r"
            stream = os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, stream)
        elif number and isinstance(stream := getattr(sys, name), TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class ReaderGone(SystemExit):
    """The reader of the results has exited, as `| head` does; nothing is left to do."""


class ResultStream(LastingStream):
    """A text stream that raises `ReaderGone` when its reader has exited."""

    def _drop(self) -> None:
        error = sys.exception()
        super()._drop()
        raise ReaderGone if isinstance(error, BrokenPipeError) or error is None else error


@contextmanager
def lasting_output(results: bool) -> Iterator[None]:
    """Temporarily wraps `sys.stdout` and `sys.stderr`; `results` if stdout is the result."""
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, stream in before.items():
        kind = ResultStream if results and name == "stdout" else LastingStream
        if stream is not None:
            setattr(sys, name, kind(stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)
