"""Which checkpoint a command line means."""

import sys
from collections.abc import Sequence
from pathlib import Path

from slm.errors import UserError
from slm.training.checkpoint import Checkpoint, checkpoint_of, newest_checkpoint, open_checkpoint


def resolve_checkpoint(
    verb: str, words: list[str]
) -> tuple[list[str], Checkpoint | None, Path | None]:
    """Finds the checkpoint that a command line means.

    `--ckpt_path` takes a file, `last` or `best`: of the newest run under
    `--trainer.default_root_dir`; other verbs than `fit` also a run, by its folder or its name, for
    its best. Without it `fit` starts anew, the other verbs take the best.
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
    wish = take_option(words, "--ckpt_path")
    base = option(words, "--trainer.default_root_dir")
    root = Path("." if base in (None, "null", "None") else str(base)) / "lightning_logs"
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
        if verb != "fit" and not path.is_file():  # a run stands for its best checkpoint
            runs = [run for run in (path, root / wish) if checkpoint_of(run)]
            path = next((found for run in runs if (found := checkpoint_of(run))), path)
    checkpoint = open_checkpoint(path)
    run = path.resolve().parent.parent
    if verb == "fit" and not names(words, "--config"):
        saved = sorted(run.glob("config*.yaml"), key=lambda file: file.stat().st_mtime)
        if saved:
            words = ["--config", str(saved[-1]), *words]
    resumed = run if verb == "fit" and wish == "last" else None
    return [*words, f"--ckpt_path={path.resolve()}"], checkpoint, resumed


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
