"""Joins shards into token files: in order, optionally without duplicates, counted and hashed."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.data.manifest import SPLITS, Manifest, SplitFacts
from slm.data.shards import FINGERPRINT, Shard, shard_path

_COPY_BLOCK = 1 << 23
Prints = npt.NDArray[Any]
"""Fingerprints of stories, of the type `FINGERPRINT`."""


def join_shards(
    shards: list[Shard], unfinished: Path, itemsize: int, *, drop_duplicates: bool
) -> dict[str, SplitFacts]:
    """Joins all shards, in order, into `train.bin` and `validation.bin` in the folder `unfinished`.

    `itemsize` is the number of bytes per id.

    Raises:
        OSError: The files cannot be written.
    """
    kept = _first_occurrences(shards, unfinished) if drop_duplicates else {}
    splits = {}
    for split in SPLITS:
        tallies = [shard.splits[split] for shard in shards]
        tokens = sum(tally.tokens for tally in tallies)
        text_bytes = sum(tally.bytes for tally in tallies)
        duplicates = 0
        digest = hashlib.sha256()
        with Manifest.path(unfinished, split).open("wb") as out:
            for shard in shards:
                path = shard_path(unfinished, shard.index, f"{split}.bin")
                ranges = [(0, shard.splits[split].tokens * itemsize)]
                if kept:
                    prints, keep = kept[split, shard.index]
                    duplicates += int((~keep).sum())
                    tokens -= int(prints["tokens"][~keep].sum())
                    text_bytes -= int(prints["bytes"][~keep].sum())
                    ranges = _ranges(prints["tokens"], keep, itemsize)
                for block in _blocks(path, ranges):
                    out.write(block)
                    digest.update(block)
            out.flush()
            os.fsync(out.fileno())
        splits[split] = SplitFacts(
            sum(tally.stories for tally in tallies) - duplicates,
            tokens,
            text_bytes,
            digest.hexdigest(),
            empty_dropped=sum(tally.empty_dropped for tally in tallies),
            duplicates_dropped=duplicates,
            repaired=sum(tally.repaired for tally in tallies),
        )
    return splits


def _first_occurrences(
    shards: list[Shard], unfinished: Path
) -> dict[tuple[str, int], tuple[Prints, npt.NDArray[np.bool_]]]:
    """The fingerprints of the stories of each split and shard, and which stories to keep.

    The validation split comes first, so that none of its stories remain in the training split.
    """
    prints = {
        (split, shard.index): np.fromfile(
            shard_path(unfinished, shard.index, f"{split}.fingerprints"), FINGERPRINT
        )
        for split in reversed(SPLITS)
        for shard in shards
    }
    hashes = np.concatenate([each["hash"] for each in prints.values()])
    keep = np.zeros(len(hashes), dtype=np.bool_)
    keep[np.unique(hashes, return_index=True)[1]] = True
    parts = np.split(keep, np.cumsum([len(each) for each in prints.values()])[:-1])
    return dict(zip(prints, zip(prints.values(), parts, strict=True), strict=True))


def _ranges(
    tokens: npt.NDArray[np.uint32], keep: npt.NDArray[np.bool_], itemsize: int
) -> list[tuple[int, int]]:
    """The byte ranges of the stories to keep in a shard; adjacent stories form one range."""
    ends = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)]) * itemsize
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    return [(int(ends[first]), int(ends[last])) for first, last in edges.reshape(-1, 2)]


def _blocks(path: Path, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes in some ranges of a file, a few megabytes at a time."""
    with path.open("rb") as file:
        for start, stop in ranges:
            file.seek(start)
            while start < stop:
                block = file.read(min(_COPY_BLOCK, stop - start))
                if not block:
                    raise OSError(f"{path} has been truncated")
                start += len(block)
                yield block
