"""Shards: pieces of a source, each encoded into its own files.

A shard is finished when its `.json` exists, which is written last, atomically. The piece, the
tokenizer and the options determine its contents.
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
from slm.data.requests import story_ends, with_request
from slm.data.source import Piece
from slm.data.tokenizer import Tokenizer
from slm.files import parse_json, replacing

# Stories are encoded in batches of about this many characters, which bounds memory.
_BATCH_CHARACTERS = 1 << 20
FINGERPRINT = np.dtype([("hash", "S16"), ("tokens", "<u4"), ("bytes", "<u4")])
"""Identifies duplicates: 128 bits of BLAKE2b, and the size of the story."""


@dataclass
class SplitTally:
    """The counts of one split in one shard, as in `SplitFacts`."""

    stories: int = 0
    tokens: int = 0
    bytes: int = 0
    empty_dropped: int = 0
    repaired: int = 0


@dataclass
class Shard:
    """A finished shard: the contents of its `.json`."""

    index: int
    splits: dict[str, SplitTally] = field(
        default_factory=lambda: {split: SplitTally() for split in SPLITS}
    )


def shard_path(folder: Path, index: int, ending: str) -> Path:
    """`00012.json`, `00012.train.bin`, `00012.train.fingerprints`."""
    return folder / f"{index:05d}.{ending}"


def read_shard(folder: Path, index: int, itemsize: int) -> Shard | None:
    """A shard, if it is finished and its files have the right sizes; else None."""
    try:
        plain = parse_json(shard_path(folder, index, "json").read_bytes())
        shard = Shard(index, {split: SplitTally(**plain[split]) for split in SPLITS})
        sizes = [shard_path(folder, index, f"{split}.bin").stat().st_size for split in SPLITS]
        complete = sizes == [tally.tokens * itemsize for tally in shard.splits.values()]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return shard if complete else None


def write_shard(
    index: int,
    piece: Piece,
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    threads: int = 1,
    report: Callable[[int, int], None] = lambda stories, text_bytes: None,
) -> Shard:
    """Encodes a piece into `.bin` files, one per split; every story ends in end-of-text.

    `report` is called after every batch with its numbers of stories and bytes of text.

    Raises:
        UserError: The piece cannot be read.
        OSError: The shard cannot be written.
    """
    shard = Shard(index)
    kinds = ("bin", "fingerprints") if corpus.clean.drop_duplicates else ("bin",)
    endings = [f"{split}.{kind}" for split in SPLITS for kind in kinds]
    with ExitStack() as stack:
        files = {}
        for ending in endings:
            path = stack.enter_context(replacing(shard_path(folder, index, ending)))
            files[ending] = stack.enter_context(path.open("wb"))
        for split, stories, texts, ids in _encoded(piece, corpus, shard, tokenizer, threads):
            files[f"{split}.bin"].write(ids.tobytes())
            text_bytes = sum(len(text.encode()) for text in texts)
            tally = shard.splits[split]
            tally.stories += len(stories)
            tally.tokens += len(ids)
            tally.bytes += text_bytes
            report(len(stories), text_bytes)
            if corpus.clean.drop_duplicates:
                prints = _fingerprints(stories, ids, tokenizer, corpus.request is not None)
                files[f"{split}.fingerprints"].write(prints.tobytes())
    with replacing(shard_path(folder, index, "json")) as path:
        plain = {split: asdict(tally) for split, tally in shard.splits.items()}
        path.write_text(json.dumps(plain), encoding="utf-8")
    return shard


def _fingerprints(
    stories: list[str], ids: npt.NDArray[Any], tokenizer: Tokenizer, requests: bool
) -> npt.NDArray[Any]:
    """Fingerprints of stories, from their text and ids. The size includes a story's request."""
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    if requests:
        ends = story_ends(ends)
    prints = np.empty(len(stories), FINGERPRINT)
    prints["hash"] = [blake2b(story.encode(), digest_size=16).digest() for story in stories]
    prints["tokens"] = np.diff(ends, prepend=-1)
    prints["bytes"] = np.diff(np.cumsum(tokenizer.byte_lengths()[ids])[ends], prepend=0)
    return prints


def _encoded(
    piece: Piece, corpus: Corpus, shard: Shard, tokenizer: Tokenizer, threads: int
) -> Iterator[tuple[str, list[str], list[str], npt.NDArray[Any]]]:
    """The batches of a piece, in order: split, stories, these with their requests, and ids."""
    dtype = id_dtype(tokenizer.n_vocab)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, list[str], list[str], Future[npt.NDArray[np.uint32]]]] = deque()
        for split, stories in _batches(piece, corpus, shard):
            texts = stories
            if corpus.request and split == "train":
                texts = [text for story in stories for text in with_request(story)]
            waiting.append((split, stories, texts, pool.submit(tokenizer.encode_stories, texts)))
            if len(waiting) > threads:
                split, stories, texts, ids = waiting.popleft()
                yield split, stories, texts, ids.result().astype(dtype)
        for split, stories, texts, ids in waiting:
            yield split, stories, texts, ids.result().astype(dtype)


def _batches(piece: Piece, corpus: Corpus, shard: Shard) -> Iterator[tuple[str, list[str]]]:
    """The stories of a piece, in order, in batches of bounded size, each of one split."""
    batches: dict[str, list[str]] = {split: [] for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for split, story, repaired in corpus.stories(piece):
        shard.splits[split].repaired += repaired
        if (corpus.clean.drop_empty or corpus.request) and not story.strip():
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


_work: tuple[Corpus, Tokenizer, Path, int] | None = None


def start_worker(corpus: Corpus, tokenizer: dict[str, object], folder: Path, threads: int) -> None:
    """Initialises a worker process, which exits when its parent does."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    global _work
    threading.Thread(target=exit_with_parent, daemon=True).start()
    _work = corpus, Tokenizer.from_plain(tokenizer), folder, threads


def work(index: int, piece: Piece) -> Shard:
    """`write_shard`, in a process initialised by `start_worker`."""
    assert _work is not None
    return write_shard(index, piece, *_work)
