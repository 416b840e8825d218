"""The verbs `fit`, `validate` and `test`."""

import logging
import re
import time
import warnings
from functools import partial

from torch import distributed

from slm.commands.fit.cli import StoryCLI
from slm.commands.fit.plan import BASE_CONFIG
from slm.commands.fit.resume import initial_checkpoint, resolve_checkpoint
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.configs import find_config
from slm.processes import end_run
from slm.training.runs import RunClaim

_SIZE = {"--model.gpt.n_layer", "--model.gpt.n_head", "--model.gpt.n_embd", "--model.gpt"}
_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|[Ss]ocket|timed? ?out")
"""Errors of the libraries that connect processes, when one of them has ended."""


def _run(verb: str, arguments: Arguments) -> int:
    _silence()
    with RunClaim() as claim:
        try:
            arguments = arguments.with_configs_found()
            arguments, checkpoint = resolve_checkpoint(verb, arguments, claim)
            initial = initial_checkpoint(verb, arguments, checkpoint)
            choose_size = False
            if arguments.get("--budget") and not (
                checkpoint or initial or "--config" in arguments.given
            ):
                choose_size = not _SIZE & arguments.given
                arguments = arguments.with_config(find_config(BASE_CONFIG))
            StoryCLI(verb, arguments, claim, checkpoint, initial, choose_size)
        except RuntimeError as error:
            if not (distributed.is_initialized() and _LOST.search(str(error))):
                raise
            time.sleep(1.0)  # the observer of the other processes knows more about it
            end_run("another process of this run has ended or cannot be reached")
    return 0


fit = partial(_run, "fit")
validate = partial(_run, "validate")
test = partial(_run, "test")


def _silence() -> None:
    """Filters out messages of Lightning and torch that a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # loading a batch takes microseconds
        ".*callbacks used to create the checkpoint need to be provided.*",  # only to train
        ".*The dirpath has changed.*",  # a run that starts from another run's checkpoint
        ".*exists and is not empty.*",  # a resumed run continues in its own folder
        "Detected call of `lr_scheduler.step.*",  # a GradScaler skips the first steps in float16
        "TensorFloat32 tensor cores.*",  # float32 means float32 on a GPU, too
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # within Lightning
    ):
        warnings.filterwarnings("ignore", message)
