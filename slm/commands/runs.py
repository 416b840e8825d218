"""Which runs a command line names."""

from pathlib import Path

from slm.errors import UserError

_PARTS = ("events.out.tfevents.*", "checkpoints/*.ckpt")
"""What makes a folder a run: curves, or checkpoints."""


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
        found = _runs(logs)
        if not found:
            raise UserError(
                f"there is no run under {logs}",
                "a run",
                "train one: slm fit --config configs/quickstart.yaml, or name its folder",
            )
        return found[-1]
    path = Path(named).expanduser()
    path = path if path.exists() else logs / named
    if path.is_file() and path.suffix == ".ckpt":
        path = path.resolve().parent.parent
    if not path.is_dir():
        there = ", ".join(sorted(str(run) for run in _runs(logs))[:5])
        raise UserError(
            f"{named} is no folder",
            "a run's folder, such as lightning_logs/version_0",
            f"one of {there}" if there else "train one: slm fit --config configs/quickstart.yaml",
        )
    if not _last_written(path):
        inside = ", ".join(str(run) for run in _runs(path)[:5])
        raise UserError(
            f"{path} is no run: it holds neither curves nor checkpoints",
            "a run's folder, such as lightning_logs/version_0",
            f"name one of {inside}" if inside else "name another folder",
        )
    return path


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


def _runs(logs: Path) -> list[Path]:
    """The runs in a folder, the newest last."""
    folders = [folder for folder in logs.glob("*") if _last_written(folder)]
    return sorted(folders, key=_last_written)


def _last_written(run: Path) -> float:
    """When a run's curves or checkpoints were written last, in seconds; 0 if it has none."""
    files = (file for part in _PARTS for file in run.glob(part))
    return max((file.stat().st_mtime for file in files), default=0.0)
