"""Which run or checkpoint a name means."""

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slm.errors import UserError
from slm.files import quoted
from slm.processes import process_rank
from slm.training.runs import Run

if TYPE_CHECKING:
    from slm.training.checkpoint import Checkpoint


def open_named(named: str | None, logs: Path) -> "Checkpoint":
    """Opens the checkpoint that `--ckpt_path` names.

    That is a file; `last` or `best`, of the newest run; or a run, by its folder or its name in
    `logs`, which stands for its best checkpoint. None means the best of the newest run.
    """
    from slm.training.checkpoint import open_checkpoint  # torch takes a second to load

    if named is None:
        path = Run.newest_checkpoint(logs, "best")
        if process_rank() == 0:
            print(
                f"No --ckpt_path given; taking the best of the newest run: {path}", file=sys.stderr
            )
    elif named in ("last", "best"):
        path = Run.newest_checkpoint(logs, named)
    else:
        path = Path(named).expanduser()
        runs = [] if path.is_file() else [Run(path), Run(logs / named)]
        path = next((found for run in runs if (found := run.best_checkpoint)), path)
    return open_checkpoint(path.absolute())  # not resolved: a run may be a link to another disk


def find_run(named: str | None, logs: Path) -> Run:
    """The run of that folder, of that name in `logs` or of that checkpoint; None: the newest."""
    if named is None:
        found = Run.find_all(logs)
        if not found:
            raise UserError(
                f"there is no run under {logs}",
                "a run",
                "train one: slm fit --config configs/quickstart.yaml, or name its folder",
            )
        return found[-1]
    path = _locate(named, logs)
    run = Run(path)
    if path.is_file() and path.suffix == ".ckpt":
        run = Run.of(path.resolve())
    if not run.folder.is_dir():
        known = ", ".join(sorted(quoted(run.folder) for run in Run.find_all(logs))[:5])
        raise UserError(
            f"{named!r} is not a folder",
            "a run's folder, such as lightning_logs/version_0",
            f"one of {known}" if known else "train one: slm fit --config configs/quickstart.yaml",
        )
    if not (run.has_checkpoint or run.has_curves):
        inside = ", ".join(quoted(found.folder) for found in Run.find_all(run.folder)[:5])
        raise UserError(
            f"{run.folder} is not a run: it contains neither curves nor checkpoints",
            "a run's folder, such as lightning_logs/version_0",
            f"name one of {inside}" if inside else "name another folder",
        )
    return run


def find_checkpoint(run: Run, named: str | None, logs: Path) -> Path | None:
    """The path of a run's checkpoint: one of its files, or `last` or `best`.

    If none is named, it is the best, or else the last; None if the run has neither.
    """
    if named is None:
        return run.best_checkpoint
    if named in ("last", "best"):
        path = run.checkpoint(named)
        if not path.is_file():
            others = sorted(file.stem for file in path.parent.glob("*.ckpt"))
            raise UserError(
                f"--ckpt_path {named}: {path} does not exist",
                "a checkpoint of that run",
                f"--ckpt_path {others[0]}" if others else "leave it out: the run has none",
            )
        return path
    path = _locate(named, logs)
    if not path.exists():
        check_checkpoint_name(named)
    if Run.of(path.resolve()).folder != run.folder.resolve():
        raise UserError(
            f"--ckpt_path {named} is not a checkpoint of {run.folder}",
            "a checkpoint of that run: a file, last or best",
            "leave the run's name out: the checkpoint identifies the run",
        )
    return path


def check_checkpoint_name(named: str) -> None:
    """Checks that a name is that of an existing checkpoint file."""
    close = difflib.get_close_matches(named, ("last", "best"), n=1)
    if named.endswith(".ckpt") and Path(named).expanduser().is_file():
        return
    raise UserError(
        f"--ckpt_path {named} does not exist or is not a checkpoint",
        "a file whose name ends in .ckpt, last or best",
        f"--ckpt_path {close[0] if close else 'lightning_logs/version_0/checkpoints/best.ckpt'}",
    )


def _locate(named: str, logs: Path) -> Path:
    path = Path(named).expanduser()
    return path if path.exists() else logs / named


def distinct_names(runs: list[Run]) -> list[str]:
    """Names for several runs: as much of each path's end as distinguishes them."""
    parts = [run.folder.resolve().parts for run in runs]
    different = len(set(parts))
    for count in range(1, max(map(len, parts))):
        names = [str(Path(*each[-count:])) for each in parts]
        if len(set(names)) == different:
            return names
    return [str(run.folder.resolve()) for run in runs]
