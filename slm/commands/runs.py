"""Which runs a command line names."""

import difflib
from pathlib import Path

from slm.errors import UserError
from slm.training.runs import find_runs, has_checkpoint, has_curves


def find_run(named: str | None, root: str | None) -> Path:
    """The folder of a run: the one named, or the newest.

    Args:
        named: A run's folder, its bare name under lightning_logs, or a checkpoint in it; None
            means the newest.
        root: `--trainer.default_root_dir`.

    Raises:
        UserError: There is no such run.
    """
    logs = Path(root or ".").expanduser() / "lightning_logs"
    if named is None:
        found = find_runs(logs)
        if not found:
            raise UserError(
                f"there is no run under {logs}",
                "a run",
                "train one: slm fit --config configs/quickstart.yaml, or name its folder",
            )
        return found[-1]
    path = _located(named, logs)
    if path.is_file() and path.suffix == ".ckpt":
        path = path.resolve().parent.parent
    if not path.is_dir():
        there = ", ".join(sorted(str(run) for run in find_runs(logs))[:5])
        raise UserError(
            f"{named!r} is no folder",
            "a run's folder, such as lightning_logs/version_0",
            f"one of {there}" if there else "train one: slm fit --config configs/quickstart.yaml",
        )
    if not (has_checkpoint(path) or has_curves(path)):
        inside = ", ".join(str(run) for run in find_runs(path)[:5])
        raise UserError(
            f"{path} is no run: it holds neither curves nor checkpoints",
            "a run's folder, such as lightning_logs/version_0",
            f"name one of {inside}" if inside else "name another folder",
        )
    return path


def find_checkpoint(run: Path, named: str | None, root: str | None) -> Path | None:
    """The checkpoint of a run to look into.

    Args:
        run: The run's folder.
        named: A file of that run, or `last` or `best`; None means the best, or the last where
            there is none.
        root: `--trainer.default_root_dir`.

    Returns:
        Its path; None if none is named and the run has none.

    Raises:
        UserError: There is no such file, or it is another run's.
    """
    if named is None:
        from slm.training.checkpoint import checkpoint_of  # torch takes a second to load

        return checkpoint_of(run)
    if named in ("last", "best"):
        path = run / "checkpoints" / f"{named}.ckpt"
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*.ckpt"))
            raise UserError(
                f"--ckpt_path {named}: {path} is not there",
                "a checkpoint of that run",
                f"--ckpt_path {there[0]}" if there else "leave it out: the run has none",
            )
        return path
    path = _located(named, Path(root or ".").expanduser() / "lightning_logs")
    if not path.exists():
        check_checkpoint_name(named)
    if path.resolve().parent.parent != run.resolve():
        raise UserError(
            f"--ckpt_path {named} for {run}, in which it does not lie",
            "a checkpoint of that run: a file, last or best",
            "leave the run's name out: the checkpoint says which run it is of",
        )
    return path


def check_checkpoint_name(named: str) -> None:
    """Checks that a checkpoint's file is named, and is there.

    Raises:
        UserError: It is not.
    """
    close = difflib.get_close_matches(named, ("last", "best"), n=1)
    if named.endswith(".ckpt") and Path(named).expanduser().is_file():
        return
    raise UserError(
        f"--ckpt_path {named} is no checkpoint that is there",
        "a file whose name ends in .ckpt, last or best",
        f"--ckpt_path {close[0] if close else 'lightning_logs/version_0/checkpoints/best.ckpt'}",
    )


def _located(named: str, logs: Path) -> Path:
    path = Path(named).expanduser()
    return path if path.exists() else logs / named


def names_apart(runs: list[Path]) -> list[str]:
    """Names for several runs: as much of each path's end as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    longest = max(map(len, parts))
    different = len(set(parts))
    for count in range(1, longest):
        names = [str(Path(*each[-count:])) for each in parts]
        if len(set(names)) == different:
            return names
    return [str(run.resolve()) for run in runs]
