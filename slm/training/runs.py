"""Runs as folders: what they contain, which is the newest, and who may write to them."""

import errno
import itertools
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from slm.errors import UserError
from slm.files import parse_json, quoted, remove_leftovers

LOCK = "run.lock"
_PATIENCE = 6.0  # seconds: workers of a killed process hold its lock for up to 5
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Run:
    """A run: `lightning_logs/version_N`, with curves, checkpoints, configs and a record."""

    folder: Path

    @classmethod
    def of(cls, checkpoint: Path) -> "Run":
        """The run that a checkpoint belongs to."""
        return cls(checkpoint.parent.parent)

    @classmethod
    def find_all(cls, logs: Path) -> list["Run"]:
        """The runs in a folder, the most recently active one last."""
        runs = (cls(path) for path in logs.glob("*"))
        found = [run for run in runs if run.has_checkpoint or run.has_curves]
        return sorted(found, key=lambda run: (run.last_active(), _natural(run.folder.name)))

    @classmethod
    def newest_checkpoint(cls, logs: Path, name: str) -> Path:
        """The checkpoint `best` or `last` of the newest run that has any.

        Raises:
            UserError: There is no run with a checkpoint, or the newest one lacks this one.
        """
        runs = [run for run in cls.find_all(logs) if run.has_checkpoint]
        if not runs:
            raise UserError(
                f"there is no run with a checkpoint under {logs}",
                "a finished or interrupted run",
                "train one: slm fit --config configs/quickstart.yaml, or name a file by "
                "--ckpt_path",
            )
        path = runs[-1].checkpoint(name)
        if not path.is_file():
            other = next(path.parent.glob("*.ckpt"))
            raise UserError(
                f"the newest run, {runs[-1].folder}, has no {path.name}",
                f"{path}",
                f"name one of its files: --ckpt_path {quoted(other)}",
            )
        return path

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint `best` or `last`."""
        return self.folder / "checkpoints" / f"{name}.ckpt"

    @property
    def best_checkpoint(self) -> Path | None:
        """The best checkpoint, or the last one if there is no best; None if there is neither."""
        paths = (self.checkpoint(name) for name in ("best", "last"))
        return next((path for path in paths if path.is_file()), None)

    @property
    def has_checkpoint(self) -> bool:
        """Whether it can be resumed."""
        return any(self.folder.glob("checkpoints/*.ckpt"))

    @property
    def has_curves(self) -> bool:
        """Whether it has logged anything."""
        return any(self.folder.glob("events.out.tfevents.*"))

    def configs(self) -> list[Path]:
        """Its saved configs, config.yaml and one for each time it was resumed, in this order."""
        configs = (path for path in self.folder.glob("config*.yaml") if _config_number(path))
        return sorted(configs, key=_config_number)

    @property
    def next_config(self) -> str:
        """The name of the next config: one more than the highest number, so gaps stay."""
        last = max((_config_number(path) for path in self.configs()), default=0)
        return f"config-{last + 1}.yaml" if last else "config.yaml"

    def last_active(self) -> float:
        """When it last trained, in seconds since 1970, by its own record.

        Not by file times, which copying, unpacking and synchronising change. A run without a record
        was started when the names of its event files say.
        """
        if entries := self.record():
            return max(
                datetime.fromisoformat(entry["started"]).timestamp() + float(entry["seconds"])
                for entry in entries
            )
        names = (file.name.split(".") for file in self.folder.glob("events.out.tfevents.*"))
        return max((float(name[3]) for name in names if name[3].isdigit()), default=0.0)

    @property
    def record_path(self) -> Path:
        """The path of its record: when it trained, where, and how fast."""
        return self.folder / "record.json"

    def record(self) -> list[dict[str, Any]]:
        """The complete entries of its record, one for each time it trained."""
        return [entry for entry in self.record_entries() if _is_complete(entry)]

    def record_entries(self) -> list[Any]:
        """All entries of its record, complete or not."""
        try:
            found = parse_json(self.record_path.read_bytes())
        except (OSError, ValueError):
            return []
        return found if isinstance(found, list) else []


def _config_number(path: Path) -> int:
    """1 for config.yaml, n for config-n.yaml, 0 for another file."""
    name = re.fullmatch(r"config(?:-(\d+))?", path.stem)
    return int(name[1] or 1) if name else 0


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts version_10 after version_9."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


_NUMBERS = {"first_step", "last_step", "seconds", "tokens"}
_TEXTS = {"started", "machine", "device", "precision", "compiled"}


def _is_complete(entry: Any) -> bool:
    try:
        datetime.fromisoformat(entry["started"])
        numbers = [*(entry[name] for name in _NUMBERS), *entry["joules"].values()]
    except (AttributeError, LookupError, TypeError, ValueError):
        return False
    return entry.keys() >= _TEXTS and all(isinstance(each, int | float) for each in numbers)


class RunClaim:
    """While entered, keeps other processes out of a run's folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # until one has been created or resumed
        self.resumed = False  # whether the folder contained a run before
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> "RunClaim":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
        created = self.folder if not self.resumed else None
        if created and all(file.name.startswith(LOCK) for file in created.glob("*")):
            shutil.rmtree(created, ignore_errors=True)  # nothing came of it
            with suppress(OSError):
                created.parent.rmdir()

    def create(self, root: Path) -> Path:
        """Creates the next `version_N` under a root; no two processes get the same.

        Raises:
            UserError: The folder cannot be created.
        """
        _check_name(root)
        names = (re.fullmatch(r"version_(\d+)", path.name) for path in root.glob("version_*"))
        taken = [int(name[1]) for name in names if name]
        try:
            root.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(max(taken, default=-1) + 1):
                folder = root / f"version_{number}"
                with suppress(FileExistsError):
                    folder.mkdir()
                    break
        except OSError as error:
            raise UserError(
                f"the run's folder cannot be created under {root}: {error.strerror}",
                "a folder that can be written to",
                "train elsewhere: --trainer.default_root_dir FOLDER",
            ) from error
        self.folder, self._lock = folder, _lock(folder, 0.0)
        return folder

    def resume(self, folder: Path) -> None:
        """Takes over the folder of an earlier run, and removes its temporary files.

        Raises:
            UserError: Another process is training in it.
        """
        _check_name(folder)
        self._lock = _lock(folder, _PATIENCE)
        self.folder, self.resumed = folder, True
        for written in (folder, folder / "checkpoints"):
            remove_leftovers(written)


def _check_name(folder: Path) -> None:
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of the run's folder is not UTF-8: {folder}",
            "UTF-8, which TensorBoard requires",
            "rename the folder, or train elsewhere: --trainer.default_root_dir FOLDER",
        ) from error


def _lock(folder: Path, patience: float) -> BaseFileLock:
    try:
        try:
            lock: BaseFileLock = FileLock(folder / LOCK)
            lock.acquire(timeout=patience)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, Timeout) or getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
                raise
            # A file system without locks: the existence of the file stands for one.
            lock = SoftFileLock(folder / f"{LOCK}.soft")
            lock.acquire(timeout=patience)
    except Timeout as error:
        raise UserError(
            f"another process is training the run {folder}",
            "one process, or one group of them, for each run",
            "wait for it or stop it; to train another run, leave out --ckpt_path last. If there "
            f"is no such process, remove {lock.lock_file}",
        ) from error
    except OSError as error:
        raise UserError(
            f"the run {folder} cannot be locked: {error.strerror or error}",
            "a folder that can be written to",
            "copy the run to another folder, or repair the permissions",
        ) from error
    return lock
