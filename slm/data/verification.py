"""Checks whether prepared data are still what their manifest states."""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.data.manifest import SPLITS, Manifest, remedy
from slm.errors import UserError

_BLOCK = 1 << 23


def verify(folder: Path) -> Manifest:
    """Recomputes everything that the manifest states.

    Raises:
        UserError: Something differs; the message names the first thing that does.
    """
    manifest = Manifest.load(folder)
    tokenizer = manifest.make_tokenizer(folder)
    lengths = tokenizer.byte_lengths()
    for split in SPLITS:
        path, facts = Manifest.path(folder, split), manifest.splits[split]
        check_hash(folder, manifest, split)
        found = {"stories": 0, "tokens": 0, "bytes": 0}
        for ids in blocks_of_ids(path, manifest.dtype):
            check_ids(ids, folder, manifest, split)
            found["stories"] += int(np.count_nonzero(ids == tokenizer.end_of_text))
            found["tokens"] += len(ids)
            found["bytes"] += int(lengths[ids].sum())
        for what, count in found.items():
            if count != getattr(facts, what):
                raise UserError(
                    f"{path} contains {count:,} {what}",
                    f"{getattr(facts, what):,} {what}, as its manifest states",
                    remedy(folder),
                )
    return manifest


def check_touched(folder: Path, manifest: Manifest) -> None:
    """Compares the checksum of each token file that was changed after its manifest.

    The manifest is the newest file of an untouched folder, so this takes no time then. A file that
    turns out to be right (a copy, for instance) is not read again the next time: the manifest is
    made the newest. Errors of the disk itself are not seen here.

    Raises:
        UserError: A file is not what the manifest states.
    """
    stamp = folder / "manifest.json"
    try:
        youngest = _changed(stamp)
        touched = [s for s in SPLITS if _changed(Manifest.path(folder, s)) >= youngest]
    except OSError as error:
        raise UserError(str(error), "readable files", remedy(folder)) from error
    for split in touched:
        path = Manifest.path(folder, split)
        if path.stat().st_size > 1 << 30:
            print(f"Checking   {path}, changed since its manifest was written", file=sys.stderr)
        check_hash(folder, manifest, split)
    if touched:
        try:
            os.utime(stamp)
        except OSError:
            return  # a folder that may only be read is checked each time


def _changed(path: Path) -> int:
    """When a file was last changed, in nanoseconds: its contents, or its path (on POSIX)."""
    found = path.stat()
    return max(found.st_mtime_ns, found.st_ctime_ns)


def check_ids(ids: npt.NDArray[Any], folder: Path, manifest: Manifest, split: str) -> None:
    """Checks that ids are in the vocabulary.

    Raises:
        UserError: One is not.
    """
    n_vocab = manifest.tokenizer["n_vocab"]
    if ids.max() >= n_vocab:
        raise UserError(
            f"{Manifest.path(folder, split)} contains the id {ids.max()}",
            f"ids below {n_vocab:,}, the size of the vocabulary",
            remedy(folder),
        )


def check_hash(folder: Path, manifest: Manifest, split: str) -> None:
    """Compares a token file's checksum with the manifest's.

    Raises:
        UserError: They differ, or the file cannot be read.
    """
    path = Manifest.path(folder, split)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError.unreadable(path, error) from error
    if found != manifest.splits[split].sha256:
        raise UserError(
            f"{path} has been changed: its SHA-256 is {found[:12]}…",
            f"{manifest.splits[split].sha256[:12]}…, as its manifest states",
            remedy(folder),
        )


def blocks_of_ids(path: Path, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """The ids of a token file, some millions at a time."""
    with path.open("rb") as file:
        while len(ids := np.fromfile(file, dtype, _BLOCK)):
            yield ids
