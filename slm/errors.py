"""The project's exceptions: errors that the user can correct, and requests to stop."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error in the user's input or environment.

    The command line prints it without a traceback and exits with status 2. `found` contains the
    offending value, `remedy` what to type or change.
    """

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{found}\n  expected: {expected}\n  remedy:   {remedy}")
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """For pickling, which would pass only the message."""
        return type(self), (self.found, self.expected, self.remedy)

    @classmethod
    def unreadable(cls, path: object, error: Exception) -> "UserError":
        """For a file that the operating system or a decompressor cannot read."""
        return cls(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "a readable, whole file",
            "check the path and its permissions, or fetch the file again",
        )


@contextmanager
def user_errors(remedy: str) -> Iterator[None]:
    """Turns ValueErrors of the option classes, which say "found; expected", into UserErrors."""
    try:
        yield
    except ValueError as error:
        found, _, expected = str(error).partition("; ")
        raise UserError(found, expected or "options in range", remedy) from error


class CheckpointError(UserError):
    """A checkpoint could not be written; the previous one is intact."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop: Ctrl-C, a closed terminal, `kill`, a batch system.

    The command line exits with status 128 + `number`, the signal's number, as shells do.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device has run out of memory; except on CUDA, only the message shows it."""
    found = re.search("out of memory|(can't|Cannot) allocate memory", str(error))
    return isinstance(error, RuntimeError) and found is not None
