"""Shards: pieces of a source that have been encoded, each into files of its own.

A shard is finished when its `.json` exists, which is written last, atomically. Piece, tokenizer and
options determine everything in a shard, whichever process writes it, and however often.
"""

import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.data.corpus import Corpus
from slm.data.manifest import SPLITS, id_dtype
from slm.data.source import Piece
from slm.data.tokenizer import Tokenizer

# Stories are encoded in batches of about this many characters, which bounds memory.
_BATCH_CHARACTERS = 1 << 20
FINGERPRINT = np.dtype([("hash", "S16"), ("tokens", "<u4"), ("bytes", "<u4")])
"""Identifies repetitions: 128 bits of BLAKE2b, and the size of the story."""


@dataclass
class SplitTally:
    """The counts of one split in one shard."""

    stories: int = 0
    tokens: int = 0
    bytes: int = 0
    """UTF-8 bytes of the text."""
    empty_dropped: int = 0
    repaired: int = 0


@dataclass
class Shard:
    """A finished shard: the contents of its `.json`."""

    index: int
    splits: dict[str, SplitTally] = field(
        default_factory=lambda: {split: SplitTally() for split in SPLITS}
    )

    @property
    def stories(self) -> int:
        """In both splits."""
        return sum(tally.stories for tally in self.splits.values())

    @property
    def bytes(self) -> int:
        """In both splits."""
        return sum(tally.bytes for tally in self.splits.values())


def shard_path(folder: Path, index: int, ending: str) -> Path:
    """`00012.json`, `00012.train.bin`, `00012.train.fingerprints`."""
    return folder / f"{index:05d}.{ending}"


def read_shard(folder: Path, index: int, itemsize: int) -> Shard | None:
    """The facts of a shard, if it is finished and its files have the right sizes."""
    try:
        plain = json.loads(shard_path(folder, index, "json").read_text(encoding="utf-8"))
        shard = Shard(index, {split: SplitTally(**plain[split]) for split in SPLITS})
        for split, tally in shard.splits.items():
            size = shard_path(folder, index, f"{split}.bin").stat().st_size
            if size != tally.tokens * itemsize:
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return shard


def write_shard(
    index: int,
    piece: Piece,
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    threads: int = 1,
    report: Callable[[int, int], None] = lambda stories, text_bytes: None,
) -> Shard:
    """Encodes a piece into `.bin` files, one for each split; every story ends in end-of-text.

    Args:
        index: Number of the piece.
        piece: What to encode.
        corpus: How.
        tokenizer: Encodes it.
        folder: The folder of the shards.
        threads: Threads that encode.
        report: Called after every batch with its numbers of stories and bytes of text.

    Raises:
        UserError: The piece cannot be read.
        OSError: The shard cannot be written.
    """
    shard = Shard(index)
    kinds = ("bin", "fingerprints") if corpus.clean.drop_duplicates else ("bin",)
    endings = [f"{split}.{kind}" for split in SPLITS for kind in kinds]
    temporary = {
        ending: shard_path(folder, index, f"{ending}.tmp-{os.getpid()}") for ending in endings
    }
    try:
        with ExitStack() as stack:
            files = {end: stack.enter_context(path.open("wb")) for end, path in temporary.items()}
            for split, stories, ids in _encoded(piece, corpus, shard, tokenizer, threads):
                files[f"{split}.bin"].write(ids.tobytes())
                encoded = [story.encode() for story in stories]
                text_bytes = sum(map(len, encoded))
                tally = shard.splits[split]
                tally.stories += len(stories)
                tally.tokens += len(ids)
                tally.bytes += text_bytes
                report(len(stories), text_bytes)
                if corpus.clean.drop_duplicates:
                    ends = np.flatnonzero(ids == tokenizer.end_of_text)
                    files[f"{split}.fingerprints"].write(_fingerprints(encoded, ends).tobytes())
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        for ending, path in temporary.items():
            path.replace(shard_path(folder, index, ending))
        facts = temporary["facts"] = shard_path(folder, index, f"json.tmp-{os.getpid()}")
        plain = {split: asdict(tally) for split, tally in shard.splits.items()}
        facts.write_text(json.dumps(plain), encoding="utf-8")
        facts.replace(shard_path(folder, index, "json"))
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return shard


def _fingerprints(encoded: list[bytes], ends: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Fingerprints of stories, from their text and the positions of their end-of-text."""
    prints = np.empty(len(encoded), FINGERPRINT)
    prints["hash"] = [blake2b(story, digest_size=16).digest() for story in encoded]
    prints["tokens"] = np.diff(ends, prepend=-1)
    prints["bytes"] = [len(story) for story in encoded]
    return prints


def _encoded(
    piece: Piece, corpus: Corpus, shard: Shard, tokenizer: Tokenizer, threads: int
) -> Iterator[tuple[str, list[str], npt.NDArray[Any]]]:
    """The batches of a piece, in order, with their ids."""
    dtype = id_dtype(tokenizer.n_vocab)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, list[str], Future[npt.NDArray[np.uint32]]]] = deque()
        for split, stories in _batches(piece, corpus, shard):
            waiting.append((split, stories, pool.submit(tokenizer.encode_stories, stories)))
            if len(waiting) > threads:
                split, stories, ids = waiting.popleft()
                yield split, stories, ids.result().astype(dtype)
        for split, stories, ids in waiting:
            yield split, stories, ids.result().astype(dtype)


def _batches(piece: Piece, corpus: Corpus, shard: Shard) -> Iterator[tuple[str, list[str]]]:
    """The stories of a piece in batches of bounded size, each of one split, in order."""
    batches: dict[str, list[str]] = {split: [] for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for split, story, repaired in corpus.stories(piece):
        shard.splits[split].repaired += repaired
        if corpus.clean.drop_empty and not story.strip():
            shard.splits[split].empty_dropped += 1
            continue
        batches[split].append(story)
        characters[split] += len(story)
        if characters[split] >= _BATCH_CHARACTERS:
            yield split, batches[split]
            batches[split], characters[split] = [], 0
    for split, stories in batches.items():
        if stories:
            yield split, stories


# ---- in another process -------------------------------------------------------------------

_work: tuple[Corpus, Tokenizer, Path, int] | None = None


def start_worker(corpus: Corpus, tokenizer: dict[str, object], folder: Path, threads: int) -> None:
    """Prepares a process for `work`."""

    def follow() -> None:
        """Ends with the parent, however that ended."""
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    global _work
    threading.Thread(target=follow, daemon=True).start()
    _work = corpus, Tokenizer.from_plain(tokenizer), folder, threads


def work(index: int, piece: Piece) -> Shard:
    """`write_shard`, in a process that `start_worker` has prepared."""
    assert _work is not None
    return write_shard(index, piece, *_work)
