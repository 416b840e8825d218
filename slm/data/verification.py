"""Whether prepared data are still what their manifest states."""

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
            if ids.max() >= tokenizer.n_vocab:
                raise UserError(
                    f"{path} holds the id {ids.max()}",
                    f"ids below {tokenizer.n_vocab:,}, the size of the vocabulary",
                    remedy(folder),
                )
            found["stories"] += int(np.count_nonzero(ids == tokenizer.end_of_text))
            found["tokens"] += len(ids)
            found["bytes"] += int(lengths[ids].sum())
        for what, count in found.items():
            if count != getattr(facts, what):
                raise UserError(
                    f"{path} holds {count:,} {what}",
                    f"{getattr(facts, what):,} {what}, as its manifest states",
                    remedy(folder),
                )
    return manifest


def check_touched(folder: Path, manifest: Manifest) -> None:
    """Compares the checksum of each token file that was written to after its manifest.

    The manifest is the youngest file of a folder that nobody has touched, so this costs nothing
    then. A file that turns out to be right (a copy, for instance) is not read again the next
    time: the manifest is made the youngest.

    Raises:
        UserError: A file is not what the manifest states.
    """
    stamp = folder / "manifest.json"
    try:
        times = {s: Manifest.path(folder, s).stat().st_mtime_ns for s in SPLITS}
        touched = [s for s, time in times.items() if time >= stamp.stat().st_mtime_ns]
    except OSError as error:
        raise UserError(str(error), "readable files", remedy(folder)) from error
    for split in touched:
        path = Manifest.path(folder, split)
        if path.stat().st_size > 1 << 30:
            print(f"Checking   {path}, written to since its manifest was", file=sys.stderr)
        check_hash(folder, manifest, split)
    if touched:
        try:
            os.utime(stamp)
        except OSError:
            return  # a folder that may only be read is checked each time


def check_hash(folder: Path, manifest: Manifest, split: str) -> None:
    """Compares a token file's checksum with the manifest's.

    Raises:
        UserError: They differ, or the file cannot be read.
    """
    path = Manifest.path(folder, split)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
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
