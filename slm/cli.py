"""The command line: `slm VERB …`, the same as `python -m slm.cli VERB …`.

Nothing heavy is imported before the verb is known.
"""

import difflib
import os
import sys
from collections.abc import Sequence

from slm import __version__
from slm.commands.configs import find_configs
from slm.errors import Stopped, UserError
from slm.processes import process_rank
from slm.signals import STOPPING, handled_by, lasting_output, raise_stopped
from slm.verbs import VERBS

OVERVIEW = f"""\
slm {__version__}: train a small language model from scratch and let it tell stories

usage: slm VERB [--option value ...]      (or: python -m slm.cli VERB ...)

{"".join(f"  {verb:<13} {what}{chr(10)}" for verb, what in VERBS.items())}
  slm fit --config configs/quickstart.yaml            a first model, in minutes on a CPU
  slm fit --config configs/small.yaml                 the 30 M model on TinyStories
  slm fit --config configs/small.yaml --data.source stories.txt --trainer.max_steps 2000
  slm fit --budget 20m --data.source stories.txt      what fits into a time, planned by itself
  slm fit --ckpt_path last                            go on with an interrupted run
  slm validate                                        the best checkpoint of the newest run
  slm predict --prompt "Once upon a time"             a story from it
  slm predict --ckpt_path FILE --prompt "One day" --num_samples 3 --out stories.jsonl
  slm plot version_0 version_1                        two runs in the same figures
  slm report                                          the newest run as one HTML file
  slm evaluate                                        how good are its stories?
  slm verify-resume --config small                    does a killed run resume exactly here?
  slm prepare --data.source "books/*.jsonl"           tokenise only
  slm bench train --config small --compile true       how fast would it train here?
  slm info data/TinyStories-gpt2 --verify             what prepared data hold; are they intact?

slm VERB --help lists a verb's options. slm --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after the command's name; None takes them from the process.

    Returns:
        The exit status: 0 done, 2 the user's input has to change, 128 + n stopped by signal n.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    lasting = ["stderr"] if words[:1] and words[0] in _PRINTING else ["stderr", "stdout"]
    try:
        with lasting_output(*lasting), handled_by(raise_stopped, STOPPING[1:]):
            return _reported(words)
    except BrokenPipeError:
        # The reader of what a verb prints went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


_PRINTING = {"predict", "info", "-h", "--help", "help"}
"""Verbs whose product is what they print: without a reader they end."""


def _reported(words: list[str]) -> int:
    """Runs a command and puts into words what ends it."""
    try:
        return _dispatch(words)
    except UserError as error:
        rank = process_rank()
        print(f"slm: error{f' in process {rank}' if rank else ''}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if process_rank() == 0:
            print(f"slm: stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb, *rest = words
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        raise UserError(
            f"there is no verb {verb!r}",
            f"one of {', '.join(VERBS)}",
            f"slm {close[0]} …" if close else "slm --help shows what there is",
        )
    if verb == "prepare":
        from slm.commands.prepare import run_prepare

        return run_prepare(find_configs(rest))
    if verb == "info":
        from slm.commands.info import run_info

        return run_info(rest)
    if verb == "predict":
        from slm.commands.predict.run import run_predict

        return run_predict(find_configs(rest))
    if verb == "bench":
        from slm.commands.bench.run import run_bench

        return run_bench([*rest[:1], *find_configs(rest[1:])])
    if verb == "evaluate":
        from slm.commands.evaluate import run_evaluate

        return run_evaluate(rest)
    if verb == "plot":
        from slm.commands.plot import run_plot

        return run_plot(rest)
    if verb == "report":
        from slm.commands.report import run_report

        return run_report(rest)
    if verb == "verify-resume":
        from slm.commands.verify_resume import run_verify_resume

        return run_verify_resume(rest)
    from slm.commands.fit.run import run_verb

    return run_verb(verb, find_configs(rest))


def run() -> None:
    """The entry point of the installed command: exits with `main`'s status."""
    sys.exit(main())


if __name__ == "__main__":
    run()
