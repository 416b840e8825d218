"""Writes shards, in this process or in several."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from slm.data.corpus import Corpus
from slm.data.manifest import id_dtype
from slm.data.progress import Progress
from slm.data.shards import Shard, read_shard, start_worker, work, write_shard
from slm.data.source import Piece
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError

# Starting a process takes about as long as encoding this many bytes.
_BYTES_PER_PROCESS = 16 << 20
# With more processes, joining the shards, in one process, dominates.
_MAX_PROCESSES = 32


def write_shards(
    corpus: Corpus, pieces: list[Piece], tokenizer: Tokenizer, unfinished: Path
) -> list[Shard]:
    """Writes all unfinished shards, and returns all shards."""
    itemsize = id_dtype(tokenizer.n_vocab).itemsize
    found = (read_shard(unfinished, index, itemsize) for index in range(len(pieces)))
    finished = {shard.index: shard for shard in found if shard}
    todo = {index: piece for index, piece in enumerate(pieces) if index not in finished}
    if finished:
        shards = f"{len(finished)} of {len(pieces)} shards"
        print(f"Resuming   {shards} were finished before", file=sys.stderr)
    progress = Progress(sum(piece.weight for piece in todo.values()), len(todo))
    try:
        for shard in _encode(corpus, todo, tokenizer, unfinished, progress):
            finished[shard.index] = shard
            progress.finish(pieces[shard.index].weight)
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
    """Writes shards, in this process or several; yields each when it is finished."""
    weight = sum(piece.weight for piece in todo.values())
    cores = corpus.prepare_workers or min(_cores(), _MAX_PROCESSES)
    useful = cores if corpus.prepare_workers else min(cores, weight // _BYTES_PER_PROCESS)
    workers = max(1, min(useful, len(todo)))
    threads = cores // workers  # per process, if there are fewer pieces than cores
    if workers == 1:
        for index, piece in todo.items():
            yield write_shard(index, piece, corpus, tokenizer, unfinished, threads, progress.count)
        return
    # replace: a copy without the cached source and tokenizer.
    arguments = (replace(corpus), tokenizer.to_plain(), unfinished, threads)
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, spawn, start_worker, arguments) as pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(work, index, piece) for index, piece in todo.items()]
            for future in as_completed(futures):
                shard = future.result()
                for tally in shard.splits.values():
                    progress.count(tally.stories, tally.bytes)
                yield shard
        except BaseException as error:
            # Unfinished shards are encoded again by the next run.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a process that prepared data was killed",
                    "enough memory for all processes: 0.1 to 0.5 GB each",
                    "repeat the command with fewer: --data.prepare_workers 1; finished shards are "
                    "kept",
                ) from error
            raise


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C; processes started meanwhile ignore it permanently."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
