"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, and moves its file to `path` once it is complete and synced.

    However the process ends, `path` has the old or the new contents; fsync of the file and the
    folder ensures this after a power failure, too.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)  # missing if the disk is full
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not possible on Windows and some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def free_space(path: Path) -> str:
    """The free space on the disk of a path, which need not exist."""
    existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:,.1f} MB are free"


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed processes; no other process may be writing there."""
    for leftover in folder.glob("*.tmp-*"):
        with suppress(OSError):
            leftover.unlink()
