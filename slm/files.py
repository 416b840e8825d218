"""Files: written whole or not at all, as JSON, in UTF-8, named in commands."""

import codecs
import json
import math
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds a path to errors of the system that lack one, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, and moves its file to `path` once it is complete and synced.

    However the process ends, `path` has the old or the new contents; fsync of the file and the
    folder ensures this after a power failure, too.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with _naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, and moves it to `path`, which must not exist, once complete.

    After an error, or if it is interrupted, nothing remains.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with _naming(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            temporary.rename(path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def quoted(path: object) -> str:
    """A path or text as part of a command to paste into a shell."""
    return shlex.quote(str(path))


def shortened(path: Path) -> Path:
    """The path relative to the current folder, if it is inside."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def utf8_conversion(head: bytes) -> str:
    """A command that converts a file to UTF-8; the encoding is guessed from its first bytes."""
    encoding = "WINDOWS-1252"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    elif head.count(0) > len(head) / 4:  # every second byte of Latin letters
        encoding = "UTF-16LE" if head[1::2].count(0) > head[::2].count(0) else "UTF-16BE"
    elif 0 in head:
        return "tr -d '\\000' < OLD > NEW"
    return f"iconv -f {encoding} -t UTF-8 OLD > NEW"


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: It is malformed, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def json_text(plain: Any) -> str:
    """JSON for a file. NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def _finite(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {name: _finite(value) for name, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(value) for value in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed processes; no other process may be writing there."""
    for leftover in folder.glob("*.tmp-*"):
        with suppress(OSError):
            leftover.unlink()
