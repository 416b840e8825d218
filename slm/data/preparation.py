"""From stories to `train.bin`, `validation.bin`, `tokenizer.json` and `manifest.json`.

The source is cut into pieces, and each piece is encoded into a shard of its own, by several
processes at once. When all shards are finished they are joined in order. What is unfinished lies
in a folder `unfinished`; whatever ends a preparation, the same command goes on with the shards
that are not finished yet. The outcome depends on the source and the options alone.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from slm.data.corpus import Corpus
from slm.data.manifest import FORMAT_VERSION, SPLITS, Manifest, SplitFacts, id_dtype
from slm.data.progress import Progress
from slm.data.shards import (
    FINGERPRINT,
    Shard,
    read_shard,
    shard_path,
    start_worker,
    work,
    write_shard,
)
from slm.data.sources import Piece, in_words
from slm.data.tinystories import difference_from_known
from slm.data.tokenizer import Tokenizer
from slm.data.verification import check_touched
from slm.errors import UserError

PIECE_BYTES = 8 << 20
# A vocabulary is learnt from this many characters of the training split at most.
_VOCABULARY_CHARACTERS = 100_000_000
_COPY_BLOCK = 1 << 23


def find_folder(corpus: Corpus) -> Path:
    """Where the prepared data of a corpus lie, or will lie.

    Data whose tokenizer is given are also found where that same tokenizer was learnt.
    """
    root = Path(corpus.root).expanduser()
    if corpus.tokenizer not in ("gpt2", "bpe") and (given := corpus.given_tokenizer):
        learnt = replace(corpus, tokenizer="bpe", vocab_size=given.n_vocab).folder_name()
        if (root / learnt / "manifest.json").exists():
            manifest = Manifest.read(root / learnt)
            same = manifest.tokenizer["sha256"] == given.sha256
            if same and manifest.source == corpus.opened.spec:
                return root / learnt
    return root / corpus.folder_name()


def ensure_prepared(corpus: Corpus) -> Path:
    """Returns the folder of prepared data, preparing them first where that is needed.

    Data that were prepared from another source, or read in another way, are never overwritten.
    Data whose source has changed since are prepared anew, in the same vocabulary, so that models
    that speak it can go on.

    Raises:
        UserError: The folder holds other or damaged data, or preparation fails.
    """
    folder = find_folder(corpus)
    unfinished = folder / "unfinished"
    if _is_prepared(corpus, folder) and not unfinished.exists():
        return folder
    with _lock(folder):
        if _is_prepared(corpus, folder):  # by one that we have waited for, or killed at its end
            shutil.rmtree(unfinished, ignore_errors=True)
            return folder
        tokenizer = None
        if corpus.tokenizer == "bpe" and Manifest.tokenizer_path(folder).exists():
            tokenizer = Tokenizer.load(Manifest.tokenizer_path(folder))
        if (folder / "manifest.json").exists():
            kept = "The vocabulary stays; remove the folder to have another one learnt."
            print(
                f"{in_words(corpus.opened.spec)} has changed since {folder} was prepared. "
                + (kept if tokenizer else ""),
                file=sys.stderr,
            )
        print(f"Preparing  {in_words(corpus.opened.spec)} into {folder}", file=sys.stderr)
        prepare(corpus, folder, tokenizer)
    return folder


def _is_prepared(corpus: Corpus, folder: Path) -> bool:
    """Whether the folder holds this corpus as it is now.

    Raises:
        UserError: It holds something else, or something damaged.
    """
    if not (folder / "manifest.json").exists():
        return False
    manifest = Manifest.load(folder)
    apart = "keep both apart with another --data.root, or remove that folder"
    if manifest.source != corpus.opened.spec:
        raise UserError(
            f"{folder} holds data prepared from {in_words(manifest.source)}",
            f"data from {in_words(corpus.opened.spec)}",
            apart,
        )
    for option, value in corpus.reading.items():
        if manifest.reading.get(option) != value:
            raise UserError(
                f"{folder} holds data prepared with {option} {manifest.reading.get(option)}",
                f"{option} {value}",
                apart,
            )
    check_touched(folder, manifest)
    return corpus.opened.unchanged_since(manifest.revision)


def prepare(
    corpus: Corpus,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    piece_bytes: int | None = None,
) -> Manifest:
    """Tokenises both splits of a corpus into a folder, or goes on with doing so.

    The manifest comes last, so a folder that has one is complete. Data that were there before
    stay until then. The same source and options give the same bytes every time, whatever the
    number of processes and however often it was interrupted. Each process holds a few megabytes
    of text at a time, or the longest story.

    Args:
        corpus: What to prepare, and how.
        folder: Where to.
        tokenizer: Encodes the stories; None takes the one that the corpus names, or learns it.
        piece_bytes: Size of a piece; None takes `PIECE_BYTES`.

    Raises:
        UserError: The source cannot be read or has no stories, or the disk refuses the files.
    """
    unfinished = folder / "unfinished"
    piece_bytes = piece_bytes or PIECE_BYTES
    try:
        revision, pieces = corpus.opened.revision(), corpus.opened.pieces(piece_bytes)
        unfinished.mkdir(parents=True, exist_ok=True)
        _keep_or_clear(unfinished, _plan(corpus, pieces, piece_bytes), tokenizer)
        tokenizer = tokenizer or corpus.given_tokenizer or _vocabulary(corpus, pieces, unfinished)
        tokenizer.save(Manifest.tokenizer_path(unfinished))
        shards = _write_shards(corpus, pieces, tokenizer, unfinished)
        splits = _join(corpus, shards, tokenizer, unfinished)
        manifest = Manifest(
            corpus.opened.spec, revision, corpus.reading, tokenizer.identity(), splits
        )
        # From here on, until the new manifest is there, the folder is not complete.
        (folder / "manifest.json").unlink(missing_ok=True)
        for split in SPLITS:
            Manifest.path(unfinished, split).replace(Manifest.path(folder, split))
        tokenizer.save(Manifest.tokenizer_path(folder))
        manifest.save(folder)
    except OSError as error:
        raise UserError(
            f"the prepared data cannot be written: {error}",
            f"a writable folder with enough free space at {folder}",
            f"make room ({_free(folder)} are free), or name another place: --data.root FOLDER; "
            "what is finished is kept",
        ) from error
    shutil.rmtree(unfinished, ignore_errors=True)
    if difference := difference_from_known(manifest):
        print(f"Note       {difference}", file=sys.stderr)
    return manifest


# ---- what is unfinished -------------------------------------------------------------------


def _plan(corpus: Corpus, pieces: list[Piece], piece_bytes: int) -> dict[str, Any]:
    """What shards depend on, but for a vocabulary that has been kept."""
    given = corpus.given_tokenizer
    return {
        "format_version": FORMAT_VERSION,
        "reading": corpus.reading,
        "tokenizer": given.sha256 if given else f"bpe {corpus.vocab_size}, to be learnt",
        "piece_bytes": piece_bytes,
        "pieces": [piece.label for piece in pieces],
    }


def _keep_or_clear(unfinished: Path, plan: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """Leaves an unfinished preparation of the same plan as it is, and removes any other."""
    path, vocabulary = unfinished / "plan.json", Manifest.tokenizer_path(unfinished)
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == plan
        if same and tokenizer and vocabulary.exists():
            same = Tokenizer.load(vocabulary).sha256 == tokenizer.sha256
        if same:
            return
    except (OSError, ValueError, UserError):
        pass
    for old in unfinished.iterdir():
        if old.name != "lock":
            old.unlink()
    temporary = unfinished / "plan.json.tmp"
    temporary.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    temporary.replace(path)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process prepare a folder at a time; the lock of one that was killed is free."""
    path = folder / "unfinished" / "lock"
    lock, said = FileLock(path), False
    try:
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The one that was waited for may have removed the folder, and the lock with it.
            with suppress(FileNotFoundError, Timeout):
                lock.acquire(timeout=0.5 if said else 0)
                if not path.exists():
                    lock.release()
                continue
            if not said:
                print(f"Waiting    for another process that prepares {folder}", file=sys.stderr)
                said = True
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to: {error.strerror or error}",
            "a folder that can be written to",
            "name another place: --data.root FOLDER",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Leaves Ctrl-C out for a moment; processes started in it never hear of it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _vocabulary(corpus: Corpus, pieces: list[Piece], unfinished: Path) -> Tokenizer:
    """Learns a vocabulary from the beginnings of all pieces, or takes up the one learnt before."""
    path = Manifest.tokenizer_path(unfinished)
    if path.exists():
        return Tokenizer.load(path)
    share = -(-_VOCABULARY_CHARACTERS // len(pieces))

    def sample() -> Iterator[str]:
        for piece in pieces:
            characters = 0
            for split, story, _ in corpus.stories(piece):
                if split != "train":
                    continue
                yield story
                characters += len(story)
                if characters >= share:
                    break

    print(f"Learning   a vocabulary of {corpus.vocab_size:,} tokens", file=sys.stderr)
    return Tokenizer.train(sample(), corpus.vocab_size)


# ---- encoding -----------------------------------------------------------------------------


def _write_shards(
    corpus: Corpus, pieces: list[Piece], tokenizer: Tokenizer, unfinished: Path
) -> list[Shard]:
    """Writes all shards that are not finished yet, and returns the facts of all."""
    itemsize = id_dtype(tokenizer.n_vocab).itemsize
    found = (read_shard(unfinished, index, itemsize) for index in range(len(pieces)))
    finished = {shard.index: shard for shard in found if shard}
    todo = {index: piece for index, piece in enumerate(pieces) if index not in finished}
    if finished:
        print(
            f"Resuming   {len(finished)} of {len(pieces)} shards were finished before",
            file=sys.stderr,
        )
    progress = Progress(sum(piece.weight for piece in todo.values()), len(todo))
    try:
        for shard in _encode(corpus, todo, tokenizer, unfinished, progress):
            finished[shard.index] = shard
            progress.finish(pieces[shard.index].weight)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted with {len(finished)} of {len(pieces)} shards finished. "
            "The same command goes on from there.",
            file=sys.stderr,
        )
        raise
    finally:
        done = progress.close()
    print(f"Encoded    {len(todo)} of {len(pieces)} shards: {done}", file=sys.stderr)
    return [finished[index] for index in range(len(pieces))]


def _encode(
    corpus: Corpus,
    todo: dict[int, Piece],
    tokenizer: Tokenizer,
    unfinished: Path,
    progress: Progress,
) -> Iterator[Shard]:
    """Writes shards, in this process or several; gives each when it is finished."""
    weight = sum(piece.weight for piece in todo.values())
    # A process takes about as long to start as to encode one piece.
    useful = corpus.prepare_workers or min(_cores(), weight // (2 * PIECE_BYTES))
    workers = min(useful, len(todo))
    if workers <= 1:
        for index, piece in todo.items():
            yield write_shard(index, piece, corpus, tokenizer, unfinished, progress.count)
        return
    # replace: a copy, without what the original has opened.
    arguments = (replace(corpus), tokenizer.to_plain(), unfinished)
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker, arguments) as pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(work, index, piece) for index, piece in todo.items()]
            for future in as_completed(futures):
                shard = future.result()
                progress.count(shard.stories, shard.bytes)
                yield shard
        except BrokenProcessPool as error:
            raise UserError(
                "a process that prepared data was ended from outside",
                "enough memory for all of them; each needs up to 0.5 GB",
                "run the command again, with fewer: --data.prepare_workers 1; what is finished "
                "is kept",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return count() or 1


# ---- joining ------------------------------------------------------------------------------


def _join(
    corpus: Corpus, shards: list[Shard], tokenizer: Tokenizer, unfinished: Path
) -> dict[str, SplitFacts]:
    """Joins the shards of each split, in order, and counts.

    Raises:
        UserError: A split is empty.
        OSError: The disk refuses the files.
    """
    itemsize = id_dtype(tokenizer.n_vocab).itemsize
    kept = _first_tellings(shards, unfinished) if corpus.clean.drop_duplicates else {}
    splits = {}
    for split in SPLITS:
        tallies = [shard.splits[split] for shard in shards]
        stories, tokens, text_bytes = (
            sum(getattr(tally, what) for tally in tallies)
            for what in ("stories", "tokens", "bytes")
        )
        duplicates = 0
        digest = hashlib.sha256()
        with Manifest.path(unfinished, split).open("wb") as out:
            for shard in shards:
                path = shard_path(unfinished, shard.index, f"{split}.bin")
                ranges = [(0, shard.splits[split].tokens * itemsize)]
                if kept:
                    prints, keep = kept[split][shard.index]
                    duplicates += int((~keep).sum())
                    tokens -= int(prints["tokens"][~keep].sum())
                    text_bytes -= int(prints["bytes"][~keep].sum())
                    ranges = _ranges(prints["tokens"], keep, itemsize)
                for block in _blocks(path, ranges):
                    out.write(block)
                    digest.update(block)
            out.flush()
            os.fsync(out.fileno())
        if stories == duplicates:
            shutil.rmtree(unfinished, ignore_errors=True)  # another run would end here too
            raise UserError(
                f"the {split} split of {in_words(corpus.opened.spec)} holds no story",
                "at least one story",
                "hold out a larger part, --data.validation_share 0.2; or give more stories (in a "
                ".txt file, <|endoftext|> stands between two), or a folder of train.txt and "
                "validation.txt",
            )
        splits[split] = SplitFacts(
            stories - duplicates,
            tokens,
            text_bytes,
            digest.hexdigest(),
            empty_dropped=sum(tally.empty_dropped for tally in tallies),
            duplicates_dropped=duplicates,
            repaired=sum(tally.repaired for tally in tallies),
        )
    return splits


Prints = npt.NDArray[Any]


def _first_tellings(
    shards: list[Shard], unfinished: Path
) -> dict[str, list[tuple[Prints, npt.NDArray[np.bool_]]]]:
    """For each split and shard the stories' fingerprints, and which stories to keep.

    The validation split comes first, so that nothing of it remains in the training split.
    """
    order = [(split, shard.index) for split in reversed(SPLITS) for shard in shards]
    prints = [
        np.fromfile(shard_path(unfinished, index, f"{split}.fingerprints"), FINGERPRINT)
        for split, index in order
    ]
    hashes = np.concatenate([p["hash"] for p in prints])
    keep = np.zeros(len(hashes), dtype=np.bool_)
    keep[np.unique(hashes, return_index=True)[1]] = True
    parts = np.split(keep, np.cumsum([len(p) for p in prints])[:-1])
    kept: dict[str, list[tuple[Prints, npt.NDArray[np.bool_]]]] = {split: [] for split in SPLITS}
    for (split, _), shard_prints, part in zip(order, prints, parts, strict=True):
        kept[split].append((shard_prints, part))
    return kept


def _ranges(
    tokens: npt.NDArray[np.uint32], keep: npt.NDArray[np.bool_], itemsize: int
) -> list[tuple[int, int]]:
    """The byte ranges of a shard in which the stories to keep lie, neighbours joined."""
    ends = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)]) * itemsize
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    return [(int(ends[first]), int(ends[last])) for first, last in edges.reshape(-1, 2)]


def _blocks(path: Path, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of some ranges of a file, a few megabytes at a time."""
    with path.open("rb") as file:
        for start, stop in ranges:
            file.seek(start)
            while start < stop:
                block = file.read(min(_COPY_BLOCK, stop - start))
                if not block:
                    raise OSError(f"{path} has been cut short")
                start += len(block)
                yield block


def _free(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB"
