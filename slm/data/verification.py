"""Checks prepared data against their manifest."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.data.manifest import SPLITS, Manifest, damaged
from slm.errors import UserError

_BLOCK = 1 << 23


def verify(folder: Path) -> Manifest:
    """Recomputes everything that the manifest states.

    Raises:
        UserError: Something differs; the message names the first difference.
    """
    manifest = Manifest.load(folder)
    tokenizer = manifest.make_tokenizer(folder)
    lengths = tokenizer.byte_lengths()
    for split in SPLITS:
        path, facts = Manifest.path(folder, split), manifest.splits[split]
        _check_hash(folder, manifest, split)
        ends, found = [], {"stories": 0, "tokens": 0, "bytes": 0}
        for ids in read_ids(folder, manifest, split):
            ends.append(np.flatnonzero(ids == tokenizer.end_of_text) + found["tokens"])
            found["tokens"] += len(ids)
            found["bytes"] += int(lengths[ids].sum())
        found["stories"] = len(manifest.story_ends(ends))
        for what, count in found.items():
            if count != getattr(facts, what):
                stated = f"{getattr(facts, what):,} {what}, as its manifest states"
                raise damaged(folder, f"{path} contains {count:,} {what}", stated)
    return manifest


def check_touched(folder: Path, manifest: Manifest) -> None:
    """Compares the checksum of each token file that is newer than its manifest.

    In an untouched folder the manifest is the newest file, so this takes no time. After a check
    that succeeds (of a copy, for instance) the manifest is made the newest, to read files only
    once. Disk errors are not detected here.

    Raises:
        UserError: A file is not what the manifest states.
    """
    stamp = folder / "manifest.json"
    try:
        written = _changed(stamp)
        touched = [s for s in SPLITS if _changed(Manifest.path(folder, s)) >= written]
    except OSError as error:
        raise damaged(folder, str(error), "readable files") from error
    for split in touched:
        path = Manifest.path(folder, split)
        if path.stat().st_size > 1 << 30:
            print(f"Checking   {path}, changed since its manifest was written", file=sys.stderr)
        _check_hash(folder, manifest, split)
    if touched:
        with suppress(OSError):  # a read-only folder is checked each time
            os.utime(stamp)


def _changed(path: Path) -> int:
    """When a file's contents or (on POSIX) its path last changed, in nanoseconds."""
    found = path.stat()
    return max(found.st_mtime_ns, found.st_ctime_ns)


def _check_hash(folder: Path, manifest: Manifest, split: str) -> None:
    path, expected = Manifest.path(folder, split), manifest.splits[split].sha256
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError.unreadable(path, error) from error
    if sha256 != expected:
        found = f"{path} has been changed: its SHA-256 is {sha256[:12]}…"
        raise damaged(folder, found, f"{expected[:12]}…, as its manifest states")


def read_ids(folder: Path, manifest: Manifest, split: str) -> Iterator[npt.NDArray[Any]]:
    """The ids of a token file, a few million at a time.

    Raises:
        UserError: An id is outside the vocabulary.
    """
    path, n_vocab = Manifest.path(folder, split), manifest.tokenizer["n_vocab"]
    with path.open("rb") as file:
        while len(ids := np.fromfile(file, manifest.dtype, _BLOCK)):
            if ids.max() >= n_vocab:
                expected = f"ids below {n_vocab:,}, the size of the vocabulary"
                raise damaged(folder, f"{path} contains the id {ids.max()}", expected)
            yield ids
