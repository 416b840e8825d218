"""What an interrupted run leaves: a message that says how to continue."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus

from slm.errors import Stopped
from slm.reports.page import shortened
from slm.training.checkpoint import open_checkpoint
from slm.training.run_logger import run_of


@contextmanager
def interruptible(trainer: Trainer, options: Namespace) -> Iterator[None]:
    """Turns Lightning's exit after a signal back into that signal, and says how to continue.

    Args:
        trainer: The Trainer.
        options: Parsed options of the verb.
    """
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not stopped and trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        if trainer.is_global_zero:
            root = options.trainer.default_root_dir
            print(_how_to_continue(trainer, root), file=sys.stderr)
        cause = error if stopped else error.__context__  # Lightning has exited because of it
        raise Stopped(getattr(cause, "number", signal.SIGINT)) from None


def _how_to_continue(trainer: Trainer, root: str | None) -> str:
    step, run = trainer.global_step, run_of(trainer)
    if trainer.state.fn != "fit" or not step:
        return "\nInterrupted before the first step; the same command starts again."
    if run is None:
        return f"\nInterrupted at step {step:,}."
    last = run.checkpoint("last")
    if not last.is_file():
        return f"\nInterrupted at step {step:,}; checkpoints are turned off."
    where = f" --trainer.default_root_dir {root}" if root else ""
    if step >= trainer.max_steps > 0 and open_checkpoint(last).validated:
        how = "Training is finished."
    else:
        how = f"To continue: slm fit --ckpt_path last{where}"
    folder = shortened(run.folder)
    return f"\nInterrupted at step {step:,}. {how}\nTo look at it: slm report {folder}"
