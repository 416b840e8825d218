"""Which runs a command line names."""

from pathlib import Path

from slm.errors import UserError
from slm.training.checkpoint import runs


def find_run(named: str | None, root: str | None) -> Path:
    """The folder of a run: the one named, or the newest.

    Args:
        named: A run's folder, or its bare name under lightning_logs; None means the newest.
        root: `--trainer.default_root_dir`.

    Raises:
        UserError: There is no such run.
    """
    logs = Path(root or ".").expanduser() / "lightning_logs"
    if named is None:
        found = runs(logs)
        if not found:
            raise UserError(
                f"there is no run with a checkpoint under {logs}",
                "a run",
                "train one: slm fit --config configs/quickstart.yaml, or name its folder",
            )
        return found[-1]
    path = Path(named).expanduser()
    path = path if path.exists() else logs / named
    if path.is_file() and path.suffix == ".ckpt":
        path = path.resolve().parent.parent
    if not path.is_dir():
        there = ", ".join(sorted(str(run) for run in runs(logs))[:5])
        raise UserError(
            f"{named} is no folder",
            "a run's folder, such as lightning_logs/version_0",
            f"one of {there}" if there else "train one: slm fit --config configs/quickstart.yaml",
        )
    if not any(path.glob("events.out.tfevents.*")) and not any(path.glob("checkpoints/*.ckpt")):
        inside = ", ".join(str(run) for run in runs(path)[:5])
        raise UserError(
            f"{path} is no run: it holds neither curves nor checkpoints",
            "a run's folder, such as lightning_logs/version_0",
            f"name one of {inside}" if inside else "name another folder",
        )
    return path
