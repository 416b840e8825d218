"""From a verb and its words to what they do: checkpoints found, errors put in words."""

import logging
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from slm.commands.configs import find_configs
from slm.commands.fit.budget import BASE_CONFIG
from slm.commands.fit.cli import StoryCLI
from slm.commands.fit.out_of_memory import TooLargeError
from slm.commands.lookup import find_checkpoint_argument, names, option
from slm.commands.parsing import os_errors_explained, out_of_memory_explained
from slm.errors import UserError
from slm.processes import end_run
from slm.training.checkpoint import Checkpoint, open_checkpoint
from slm.training.memory import return_freed_memory
from slm.training.runs import RunClaim


@os_errors_explained()
def run_verb(verb: str, words: Sequence[str]) -> int:
    """Runs one of the three verbs that build a Trainer.

    Args:
        verb: fit, validate or test.
        words: Its command line.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    _hush()
    with RunClaim() as claim:
        return _run_claimed(verb, list(words), claim)


def _run_claimed(verb: str, words: list[str], claim: RunClaim) -> int:
    try:
        words, checkpoint = find_checkpoint_argument(verb, words, claim if verb == "fit" else None)
        initial = _initial(verb, words, checkpoint)
        choose_size = False
        if option(words, "--budget") and not (checkpoint or initial or names(words, "--config")):
            choose_size = not any(names(words, name) for name in _SIZE)
            words = [*find_configs(["--config", BASE_CONFIG]), *words]
        with out_of_memory_explained(
            "to measure, a smaller --data.eval_batch_size; to train, a smaller --data.batch_size "
            "with more --trainer.accumulate_grad_batches, or --model.grad_checkpointing true"
        ):
            while True:
                try:
                    StoryCLI(verb, words, claim, checkpoint, initial, choose_size)
                    break
                except TooLargeError as found:
                    words = found.command_line(words)
                    last = found.checkpoint
                # Behind the error, which keeps everything alive; the checkpoint wants memory, too.
                return_freed_memory()
                checkpoint = open_checkpoint(last) if last else checkpoint
    except RuntimeError as error:
        if not (distributed.is_initialized() and _LOST.search(str(error))):
            raise
        time.sleep(1.0)  # what watches the other processes knows more about it
        end_run("another process of this run has ended or cannot be reached")
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise UserError(
            " ".join(str(error).split()),
            "Trainer options that fit this machine and each other",
            f"slm {verb} --help lists them; without any, the machine's best device is used",
        ) from error
    return 0


_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|[Ss]ocket|timed? ?out")
"""What the libraries that connect processes say when one is gone."""
_SIZE = ("--model.gpt.n_layer", "--model.gpt.n_head", "--model.gpt.n_embd", "--model.gpt")


def _initial(verb: str, words: Sequence[str], resumed: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that `--model.init_from` names on the command line, unless one is resumed.

    Raises:
        UserError: There is no such checkpoint.
    """
    path = option(words, "--model.init_from")
    if verb != "fit" or resumed or path in (None, "null"):
        return None
    return open_checkpoint(Path(str(path)).expanduser())


def _hush() -> None:
    """Leaves out what Lightning says that a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # loading a batch costs microseconds
        ".*callbacks used to create the checkpoint need to be provided.*",  # not to measure or tell
        ".*The dirpath has changed.*",  # a run that starts from another run's checkpoint
        ".*exists and is not empty.*",  # a resumed run goes on in its own folder
        "Detected call of `lr_scheduler.step.*",  # a GradScaler skips the first steps in float16
        "TensorFloat32 tensor cores.*",  # float32 means float32 on a GPU, too
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # within Lightning
    ):
        warnings.filterwarnings("ignore", message)
