"""Which checkpoint a command line means."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from slm.commands.configs import read_config
from slm.errors import UserError
from slm.processes import process_rank
from slm.training.checkpoint import (
    Checkpoint,
    checkpoint_of,
    drop_retired,
    newest_checkpoint,
    open_checkpoint,
)
from slm.training.runs import RunClaim


def find_checkpoint_argument(
    verb: str, words: list[str], claim: RunClaim | None = None
) -> tuple[list[str], Checkpoint | None]:
    """Finds the checkpoint that a command line means.

    `--ckpt_path` takes a file, `last` or `best`: of the newest run under
    `trainer.default_root_dir`; other verbs than `fit` also a run, by its folder or its name, for
    its best. Without it `fit` starts anew, the other verbs take the best.
    `fit --ckpt_path last` continues in that run's folder, which is claimed for this process;
    `fit` with any checkpoint of a run takes that run's config where none is given.

    Returns:
        The command line with the file's path in it, and the opened checkpoint.

    Raises:
        UserError: There is no such checkpoint, or another process is training the run.
    """
    if words and words[-1] == "--ckpt_path":
        raise UserError(
            "--ckpt_path without a value", "a file, last or best", f"slm {verb} --ckpt_path last"
        )
    wish = take_option(words, "--ckpt_path")
    root = root_folder(words) / "lightning_logs"
    if wish in (None, "null", "None"):
        if verb == "fit" or {"-h", "--help", "--print_config"} & set(words):
            return words, None
        wish = "best"
        path = newest_checkpoint(root, "best.ckpt")
        if process_rank() == 0:
            print(
                f"No --ckpt_path given; taking the best of the newest run: {path}", file=sys.stderr
            )
    elif wish in ("last", "best"):
        path = _chosen_by_first_process() or newest_checkpoint(root, f"{wish}.ckpt")
    else:
        path = Path(wish).expanduser()
        if verb != "fit" and not path.is_file():  # a run stands for its best checkpoint
            runs = [run for run in (path, root / wish) if checkpoint_of(run)]
            path = next((found for run in runs if (found := checkpoint_of(run))), path)
    path = path.absolute()  # not resolved: a run may be a link to another disk
    run = path.parent.parent
    if process_rank() == 0:
        if claim is not None and wish == "last":
            claim.resume(run)  # before it is opened: another process may be about to replace it
        os.environ[_CHOSEN] = str(path)
    checkpoint = open_checkpoint(path)
    if verb == "fit" and not names(words, "--config"):
        saved = sorted(run.glob("config*.yaml"), key=lambda file: _number(file.stem))
        if saved:
            words = [f"--config={_saved_config(saved[-1])}", *words]
    return [*words, f"--ckpt_path={path}"], checkpoint


def _saved_config(path: Path) -> str:
    """A run's own config: its path, or, if an older version wrote it, what it says today."""
    config = read_config(path)
    gpt = config.get("model", {}).get("gpt", {})
    known = dict(gpt)
    drop_retired(gpt, path)
    return str(path) if gpt == known else yaml.safe_dump(config)


_CHOSEN = "SLM_CHECKPOINT"


def _chosen_by_first_process() -> Path | None:
    """What the process that started this one, as one of several of a run, has resolved."""
    chosen = os.environ.get(_CHOSEN)
    return Path(chosen) if chosen and process_rank() else None


def _number(stem: str) -> int:
    """2 for config-2, 1 for config."""
    return int(stem.partition("-")[2] or 1) if stem.partition("-")[2].isdigit() else 1


def root_folder(words: Sequence[str]) -> Path:
    """`trainer.default_root_dir`, on the command line or in a config file; the later wins."""
    root = option(words, "--trainer.default_root_dir")
    if root is None:
        for word, following in zip(words, [*words[1:], ""], strict=False):
            name, equals, value = word.partition("=")
            if name in ("-c", "--config"):
                trainer = read_config(Path(value if equals else following)).get("trainer")
                if isinstance(trainer, dict) and "default_root_dir" in trainer:
                    root = trainer["default_root_dir"]
    return Path("." if root in (None, "null", "None") else str(root)).expanduser()


def names(words: Sequence[str], name: str) -> bool:
    """Whether a command line gives an option; `-c` is `--config`."""
    given = {word.partition("=")[0] for word in words}
    return name in given or (name == "--config" and "-c" in given)


def option(words: Sequence[str], name: str) -> str | None:
    """The value of an option on a command line, the last if there are several."""
    value = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def take_option(words: list[str], name: str) -> str | None:
    """`option`, and removes the option from the list."""
    value = option(words, name)
    for index in reversed(range(len(words))):
        if words[index] == name:
            del words[index : index + 2]
        elif words[index].startswith(f"{name}="):
            del words[index]
    return value
