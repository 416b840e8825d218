"""Writes many shards: in this process, or in several at once."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
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

# A process takes about as long to start as to encode so many bytes.
_WORTH_A_PROCESS = 16 << 20
# Beyond so many, the one process that joins the shards is what takes the time.
_MOST = 32


def write_shards(
    corpus: Corpus, pieces: list[Piece], tokenizer: Tokenizer, unfinished: Path
) -> list[Shard]:
    """Writes all unfinished shards, and returns the facts of all."""
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
    cores = corpus.prepare_workers or min(_cores(), _MOST)
    useful = cores if corpus.prepare_workers else min(cores, weight // _WORTH_A_PROCESS)
    workers = max(1, min(useful, len(todo)))
    threads = cores // workers  # within a process, where pieces are fewer than cores
    if workers == 1:
        for index, piece in todo.items():
            yield write_shard(index, piece, corpus, tokenizer, unfinished, threads, progress.count)
        return
    # replace: a copy, without what the original has opened.
    arguments = (replace(corpus), tokenizer.to_plain(), unfinished, threads)
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, spawn, start_worker, arguments) as pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(work, index, piece) for index, piece in todo.items()]
            for future in as_completed(futures):
                shard = future.result()
                progress.count(shard.stories, shard.bytes)
                yield shard
        except BaseException as error:
            # Nobody waits for what they are at; it would be done again.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a process that prepared data was ended from outside",
                    "enough memory for all of them: 0.1 to 0.5 GB each",
                    "run the command again, with fewer: --data.prepare_workers 1; what is "
                    "finished is kept",
                ) from error
            raise


def _cores() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return count() or 1


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C for a moment; processes started in it always do."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
