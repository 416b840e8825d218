"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file beside `path` and moves it into place once it is complete and on the disk.

    Whatever ends the process, `path` holds the old contents or the new ones. Without fsync of file
    and folder that would not be true of a power failure.

    Yields:
        The temporary path to write to.
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
            error.filename = str(path)  # a full disk does not say which file
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows cannot open a folder, some network file systems not sync one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def free_space(path: Path) -> str:
    """The free space where a path is, or would be."""
    existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:,.1f} MB are free"


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes that were killed while writing into a folder.

    Only for a folder that no other process can be writing to.
    """
    for leftover in folder.glob("*.tmp-*"):
        with suppress(OSError):
            leftover.unlink()
