"""The command line: `slm VERB …`, the same as `python -m slm.cli VERB …`.

Nothing heavy is imported before the verb is known. This is the only place where errors are turned
into messages.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from slm import __version__
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.errors import explain
from slm.errors import Stopped, UserError
from slm.printable import printable
from slm.processes import drop_left_over_rank, process_rank
from slm.signals import (
    STOPPING,
    ReaderGone,
    handled_by,
    lasting_output,
    open_missing_streams,
    raise_stopped,
)
from slm.verbs import OVERVIEW, VERBS

_PRINTS = {"predict", "info", "-h", "--help", "help"}
"""Verbs whose result is what they print: they end when nobody reads it any more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of this process.

    Returns:
        The exit status: 0 done, 1 a check failed, 2 the user's input must change, 128 + n stopped
        by signal n.
    """
    arguments = Arguments(argv)
    verb = arguments.take_first()
    try:
        with lasting_output(verb in _PRINTS), handled_by(raise_stopped, STOPPING[1:]):
            return _run(verb, arguments)
    except ReaderGone:
        return 0


def _run(verb: str | None, arguments: Arguments) -> int:
    """Runs a verb, and reports what ends it."""
    try:
        status = _dispatch(verb, arguments)
        print(end="", flush=True)  # the reader may have exited, the disk be full
        return status
    except SystemExit:
        raise
    except Stopped as stopped:
        if process_rank() == 0:
            print(f"slm: stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        explained = explain(error, verb)
        if explained is None:
            raise
        rank = process_rank()
        process = f" in process {rank}" if rank else ""
        print(f"slm: error{process}: {printable(str(explained))}", file=sys.stderr)
        return 2


def _dispatch(verb: str | None, arguments: Arguments) -> int:
    if verb in (None, "-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if verb in ("-V", "--version"):
        print(__version__)
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(str(verb), VERBS, n=1)
        raise UserError(
            f"there is no verb {verb!r}",
            f"one of {', '.join(VERBS)}",
            f"slm {close[0]} …" if close else "slm --help shows what there is",
        )
    module, _, function = VERBS[verb].function.partition(":")
    return int(getattr(importlib.import_module(module), function)(arguments))


def run() -> None:
    """The entry point of the installed command: exits with `main`'s status."""
    open_missing_streams()
    drop_left_over_rank()
    # Shell commands in a notebook inherit its matplotlib backend but cannot import it.
    os.environ["MPLBACKEND"] = "agg"
    sys.exit(main())


if __name__ == "__main__":
    run()
