"""Preparing data: ours against bare tiktoken, and against the way of the common notebook.

Usage:

    python benchmarks/preparation.py FOLDER --megabytes 400 --rounds 3

FOLDER holds a `train.txt` with <|endoftext|> between stories; its text is repeated until there is
enough of it. In each round three commands run, one after the other, each in a process of its own:

- bare: `encode_ordinary_batch` of tiktoken on one thread, over stories that lie in memory, results
  thrown away. Only the encoding is timed.
- ours: `slm prepare` from a cold process to the manifest, reading, encoding, writing and checksums
  included.
- notebook: `datasets.map` from text to lists of ids, one process for each core, then the ids
  written to a memory map in 1,024 shards. Timed from a data set that is loaded already.

Printed are seconds, the ratios within each round with their medians, and the peak memory of the
largest process of each.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("bare", "ours", "notebook")


def read(path: Path) -> list[str]:
    """The stories of a file."""
    from slm.data.readers import read_stories

    return list(read_stories(path, "text"))


def bare(path: Path, out: Path) -> float:
    """Seconds of the bare encoding."""
    from slm.data.tokenizer import Tokenizer

    stories, encoding = read(path), Tokenizer.gpt2()._encoding
    begin = time.perf_counter()
    for start in range(0, len(stories), 10_000):
        encoding.encode_ordinary_batch(stories[start : start + 10_000], num_threads=1)
    return time.perf_counter() - begin


def ours(path: Path, out: Path) -> float:
    """Seconds of the whole command."""
    workers = str(len(os.sched_getaffinity(0)))
    begin = time.perf_counter()
    subprocess.run(
        [
            sys.executable, "-m", "slm.cli", "prepare", "--data.source", path, "--data.root", out,
            "--data.prepare_workers", workers,
        ],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begin


def notebook(path: Path, out: Path) -> float:
    """Seconds from a loaded data set to the memory map."""
    import datasets
    import numpy as np

    from slm.data.tokenizer import Tokenizer

    datasets.disable_progress_bars()
    # On disk, as a data set of the hub would be, and not in this process's memory.
    datasets.Dataset.from_dict({"text": read(path)}).save_to_disk(out / "set")
    stories = datasets.load_from_disk(out / "set")
    encoding = Tokenizer.gpt2()._encoding

    def encode(row: dict[str, str]) -> dict[str, object]:
        ids = [*encoding.encode_ordinary(row["text"]), 50256]
        return {"ids": ids, "count": len(ids)}

    begin = time.perf_counter()
    encoded = stories.map(
        encode,
        remove_columns=["text"],
        num_proc=len(os.sched_getaffinity(0)),
        load_from_cache_file=False,
    )
    total = int(np.sum(encoded["count"], dtype=np.uint64))
    tokens = np.memmap(out / "train.bin", dtype=np.uint16, mode="w+", shape=(total,))
    position = 0
    for index in range(1024):
        shard = encoded.shard(num_shards=1024, index=index, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"])
        tokens[position : position + len(ids)] = ids
        position += len(ids)
    tokens.flush()
    return time.perf_counter() - begin


def repeat(text: Path, out: Path, megabytes: int) -> None:
    """Writes a text so often that it makes so many megabytes."""
    data = text.read_bytes()
    with out.open("wb") as file:
        while file.tell() < megabytes * 1e6:
            file.write(data)


def measure(way: str, path: Path, folder: Path) -> tuple[float, float]:
    """Seconds, and peak memory in GB of the largest process, of one way in a fresh process."""
    out = folder / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, path, "--out", out],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    shutil.rmtree(out)
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), int(kilobytes) / 1e6


def main() -> None:
    """Runs the rounds and prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seconds = globals()[options.child](options.folder, options.out)
        who = resource.RUSAGE_CHILDREN if options.child == "ours" else resource.RUSAGE_SELF
        memory = [resource.getrusage(w).ru_maxrss for w in {who, resource.RUSAGE_CHILDREN}]
        print(seconds, max(memory))
        return
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "text.txt"
        repeat(options.folder / "train.txt", path, options.megabytes)
        size = path.stat().st_size / 1e6
        print(f"{size:.0f} MB of text, {len(os.sched_getaffinity(0))} cores")
        for number in range(options.rounds):
            found = {way: measure(way, path, folder) for way in options.ways}
            rounds.append(found)
            print(
                f"round {number + 1}: "
                + ", ".join(
                    f"{way} {seconds:.1f} s ({size / seconds:.1f} MB/s, {memory:.2f} GB)"
                    for way, (seconds, memory) in found.items()
                )
            )
    summary = {}
    for way in options.ways:
        if way != "ours" and "ours" in options.ways:
            ratios = [found[way][0] / found["ours"][0] for found in rounds]
            summary[f"{way} / ours"] = ratios
            print(
                f"ours is faster than {way} by {statistics.median(ratios):.2f} (median; "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)})"
            )
    if options.json:
        options.json.write_text(
            json.dumps({"megabytes": size, "rounds": rounds, "ratios": summary}, indent=1)
        )


if __name__ == "__main__":
    main()
