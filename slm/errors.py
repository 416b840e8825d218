"""The exceptions with a meaning of their own: what the user can repair, and a request to stop."""

import re
import signal


class UserError(Exception):
    """Something in the user's input or surroundings must change.

    The command line prints it without a traceback and exits with status 2.

    Args:
        found: What was found, with the offending value.
        expected: What would have been right.
        remedy: What to type or change.
    """

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{found}\n  expected: {expected}\n  remedy:   {remedy}")
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """Lets the error travel between processes, which need all three of its parts."""
        return type(self), (self.found, self.expected, self.remedy)

    @classmethod
    def unreadable(cls, path: object, error: Exception) -> "UserError":
        """For a file that the operating system, or a decompressor, refuses to read."""
        return cls(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "a readable, whole file",
            "check the path and its permissions, or fetch the file again",
        )

    @classmethod
    def from_value_error(cls, error: ValueError, remedy: str) -> "UserError":
        """The ValueErrors of the option classes read "found; expected"."""
        found, _, expected = str(error).partition("; ")
        return cls(found, expected or "options in range", remedy)


class CheckpointError(UserError):
    """A checkpoint that could not be written; the one that was there before is intact."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop: Ctrl-C, a closed terminal, `kill`, a batch system.

    The command line exits with status 128 + number, as a shell reports it.

    Args:
        number: Which signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device has run out of memory; outside of CUDA only the message says so."""
    message = str(error)
    return isinstance(error, RuntimeError) and bool(
        re.search("out of memory|(can't|Cannot) allocate memory", message)
    )
