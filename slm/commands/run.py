"""From a verb and its words to what they do: checkpoints found, errors put in words."""

import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from slm.commands.budget import BASE_CONFIG
from slm.commands.complaints import os_errors_explained
from slm.commands.configs import find_configs
from slm.commands.trainer import StoryCLI
from slm.errors import UserError
from slm.training.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint


@os_errors_explained()
def run_verb(verb: str, words: Sequence[str]) -> int:
    """Runs one of the four verbs that build a Trainer.

    Args:
        verb: fit, validate, test or predict.
        words: Its command line.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    _hush()
    try:
        words, checkpoint, resume_run = resolve_checkpoint(verb, list(words))
        initial = _initial(verb, words, checkpoint)
        choose_size = False
        if _option(words, "--budget") and not (checkpoint or initial or _names(words, "--config")):
            choose_size = not any(_names(words, name) for name in _SIZE)
            words = [*find_configs(["--config", BASE_CONFIG]), *words]
        StoryCLI(verb, words, checkpoint, resume_run, initial, choose_size)
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise UserError(
            " ".join(str(error).split()),
            "Trainer options that fit this machine and each other",
            f"slm {verb} --help lists them; without any, the machine's best device is used",
        ) from error
    except RuntimeError as error:
        # Out of memory: a class of its own on CUDA, known by its words elsewhere.
        if not re.search("out of memory|can't allocate memory", str(error)):
            raise
        raise UserError(
            str(error).split(". ")[0],
            "a batch that fits into the device's memory",
            "halve --data.batch_size and double --trainer.accumulate_grad_batches: the same "
            "batch in smaller portions",
        ) from error
    return 0


def resolve_checkpoint(
    verb: str, words: list[str]
) -> tuple[list[str], Checkpoint | None, Path | None]:
    """Finds the checkpoint that a command line means.

    `--ckpt_path` takes a file, `last` or `best`: of the newest run under
    `--trainer.default_root_dir`. Without it `fit` starts anew, the other verbs take the best.
    `fit --ckpt_path last` goes on in that run's folder; `fit` with any checkpoint of a run takes
    that run's config where none is given.

    Returns:
        The command line with the file's path in it, the opened checkpoint, and the folder of the
        run to go on in.

    Raises:
        UserError: There is no such checkpoint.
    """
    if words and words[-1] == "--ckpt_path":
        raise UserError(
            "--ckpt_path without a value", "a file, last or best", f"slm {verb} --ckpt_path last"
        )
    wish = _take_option(words, "--ckpt_path")
    root = Path(_option(words, "--trainer.default_root_dir") or ".") / "lightning_logs"
    if wish in (None, "null", "None"):
        if verb == "fit" or {"-h", "--help", "--print_config"} & set(words):
            return words, None, None
        wish = "best"
        path = newest_checkpoint(root, "best.ckpt")
        print(f"No --ckpt_path given; taking the best of the newest run: {path}", file=sys.stderr)
    elif wish in ("last", "best"):
        path = newest_checkpoint(root, f"{wish}.ckpt")
    else:
        path = Path(wish).expanduser()
    checkpoint = open_checkpoint(path)
    run = path.resolve().parent.parent
    if verb == "fit" and not _names(words, "--config"):
        saved = sorted(run.glob("config*.yaml"), key=lambda file: file.stat().st_mtime)
        if saved:
            words = ["--config", str(saved[-1]), *words]
    resumed = run if verb == "fit" and wish == "last" else None
    return [*words, f"--ckpt_path={path.resolve()}"], checkpoint, resumed


_SIZE = ("--model.gpt.n_layer", "--model.gpt.n_head", "--model.gpt.n_embd", "--model.gpt")


def _names(words: Sequence[str], name: str) -> bool:
    """Whether a command line gives an option; `-c` is `--config`."""
    given = {word.partition("=")[0] for word in words}
    return name in given or (name == "--config" and "-c" in given)


def _initial(verb: str, words: Sequence[str], resumed: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that `--model.init_from` names on the command line, unless one is resumed.

    Raises:
        UserError: There is no such checkpoint.
    """
    path = _option(words, "--model.init_from")
    if verb != "fit" or resumed or path in (None, "null"):
        return None
    return open_checkpoint(Path(str(path)).expanduser())


def _option(words: Sequence[str], name: str) -> str | None:
    """The value of an option on a command line, the last if there are several."""
    value = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def _take_option(words: list[str], name: str) -> str | None:
    """`_option`, and removes the option from the list."""
    value = _option(words, name)
    for index in reversed(range(len(words))):
        if words[index] == name:
            del words[index : index + 2]
        elif words[index].startswith(f"{name}="):
            del words[index]
    return value


def _hush() -> None:
    """Leaves out what Lightning says that a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # loading a batch costs microseconds
        ".*callbacks used to create the checkpoint need to be provided.*",  # not to measure or tell
        ".*The dirpath has changed.*",  # a run that starts from another run's checkpoint
        ".*exists and is not empty.*",  # a resumed run goes on in its own folder
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # within Lightning
    ):
        warnings.filterwarnings("ignore", message)
