"""Runs as folders: each belongs to one process at a time, and records when it was at work.

A run is `lightning_logs/version_N`, with curves, checkpoints and `record.json`.
"""

import errno
import json
import re
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from slm.errors import UserError
from slm.files import remove_leftovers

RECORD = "record.json"
LOCK = "run.lock"
_PATIENCE = 6.0  # seconds: workers of a killed process hold its lock for up to 5
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class RunClaim:
    """While entered, keeps other processes out of a run's folder.

    Attributes:
        folder: The folder, once one has been created or resumed.
        resumed: Whether it held a run before.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.resumed = False
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
        numbers = (re.fullmatch(r"version_(\d+)", path.name) for path in root.glob("version_*"))
        number = max((int(found[1]) for found in numbers if found), default=-1) + 1
        try:
            root.mkdir(parents=True, exist_ok=True)
            while True:
                folder = root / f"version_{number}"
                try:
                    folder.mkdir()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise UserError(
                f"the run's folder cannot be created under {root}: {error.strerror}",
                "a folder that can be written to",
                "train elsewhere: --trainer.default_root_dir FOLDER",
            ) from error
        self.folder, self._lock = folder, _lock(folder, 0.0)
        return folder

    def resume(self, folder: Path) -> None:
        """Takes over the folder of an earlier run, and cleans up what its process left unwritten.

        Raises:
            UserError: Another process is training in it.
        """
        self._lock = _lock(folder, _PATIENCE)
        self.folder, self.resumed = folder, True
        for written in (folder, folder / "checkpoints"):
            remove_leftovers(written)


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


# ---- which run is meant -------------------------------------------------------------------


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return any(folder.glob("checkpoints/*.ckpt"))


def has_curves(folder: Path) -> bool:
    """Whether a folder holds the curves of a run."""
    return any(folder.glob("events.out.tfevents.*"))


def find_runs(root: Path) -> list[Path]:
    """The runs under a root, the one that was at work last at the end."""
    folders = (path for path in root.glob("*") if has_checkpoint(path) or has_curves(path))
    return sorted(folders, key=lambda run: (last_active(run), _natural(run.name)))


def last_active(run: Path) -> float:
    """When a run was at work last, in seconds since 1970, by its own record.

    Not by file times, which copying, unpacking and synchronising change. A run without a record
    was at least started when the names of its event files say.
    """
    entries = read_record(run)
    if entries:
        return max(_ended(entry) for entry in entries)
    names = (file.name.split(".") for file in run.glob("events.out.tfevents.*"))
    return max((float(name[3]) for name in names if name[3].isdigit()), default=0.0)


def _ended(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["started"]).timestamp() + float(entry["seconds"])


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts version_10 after version_9."""
    return [(int(part or 0), word) for word, part in re.findall(r"(\D*)(\d*)", name)]


# ---- the record ---------------------------------------------------------------------------

_NUMBERS = {"first_step", "last_step", "seconds", "tokens"}
_WORDS = {"started", "machine", "device", "precision", "compiled"}


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's record that are whole; none if there is no record."""
    return [entry for entry in read_entries(folder) if _is_whole(entry)]


def read_entries(folder: Path) -> list[Any]:
    """All entries of a run's record, whole or not."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _is_whole(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("joules"), dict):
        return False
    numbers = [entry.get(name) for name in _NUMBERS] + list(entry["joules"].values())
    if not all(isinstance(each, int | float) for each in numbers) or not entry.keys() >= _WORDS:
        return False
    try:
        datetime.fromisoformat(entry["started"])
    except (TypeError, ValueError):
        return False
    return True
