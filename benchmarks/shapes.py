"""Compares the modern shape, Qwen3's, with the one that the configs had before it.

Usage:

    python benchmarks/shapes.py FOLDER --seeds 1 2 3 --jobs 8 --out shapes

FOLDER contains `train.txt` and `validation.txt`. Each run is a whole `slm fit` of a config, with
each shape and seed, for an equal number of tokens; `--jobs` of them run at once.
Writes every run to `OUT.json` and the table to `OUT.md`.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from slm.hardware import describe_machine, find_device

SHAPES = {
    "RMSNorm, QK gains, SwiGLU": "",
    "LayerNorm, QK-norm, GELU (before)": (
        "--model.gpt.norm layer --model.gpt.qk_gain false --model.gpt.mlp gelu"
    ),
}
RUNS = {
    "modern-20min": "--config modern-20min",
    "modern-5min": "--config modern-5min",
    "quickstart": "--config quickstart --data.source builtin",
}


def run(name: str, shape: str, seed: int, data: Path, options: list[str]) -> dict[str, Any]:
    """One training, and the bits per byte on its validation stories."""
    with tempfile.TemporaryDirectory() as root:
        started = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable, "-m", "slm.cli", "fit", "--data.source", str(data),
                *RUNS[name].split(), *SHAPES[shape].split(), "--seed_everything", str(seed),
                "--report", "false", "--trainer.default_root_dir", root, *options,
            ],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}, {shape}: {done.stderr}")
    bits = float(re.findall(r"bits_per_byte ([\d.]+)", done.stderr)[-1])
    seconds = time.perf_counter() - started
    print(f"{name:<16} {shape:<34} seed {seed}  {bits:.4f}  {seconds:.0f} s", flush=True)
    return {"run": name, "shape": shape, "seed": seed, "bits_per_byte": bits}


def table(runs: Iterable[dict[str, Any]]) -> str:
    """Bits per byte of each seed, their mean and their spread; how much the new shape loses."""
    found: dict[str, dict[str, list[float]]] = {}
    for each in sorted(runs, key=lambda run: int(run["seed"])):
        found.setdefault(each["run"], {}).setdefault(each["shape"], []).append(
            each["bits_per_byte"]
        )
    lines = ["| run | shape | bits per byte, each seed | mean | spread |", "| --- " * 5 + "|"]
    for name in filter(found.get, RUNS):
        for shape in filter(found[name].get, SHAPES):
            bits = found[name][shape]
            lines.append(
                f"| {name} | {shape} | {', '.join(f'{b:.4f}' for b in bits)} "
                f"| {statistics.mean(bits):.4f} | {max(bits) - min(bits):.4f} |"
            )
        new, old = (found[name].get(shape, []) for shape in SHAPES)
        if len(new) == len(old) > 1:
            differences = [a - b for a, b in zip(new, old, strict=True)]
            error = statistics.stdev(differences) / len(differences) ** 0.5
            mean = statistics.mean(differences)
            lines.append(
                f"| {name} | difference, ± standard error | {mean:+.4f} ± {error:.4f} | | |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("shapes"))
    options, passed = parser.parse_known_args()
    facts = {"machine": describe_machine(find_device("auto")), "options": passed}
    done: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [
            pool.submit(run, name, shape, seed, options.folder.resolve(), passed)
            for name in options.only
            for seed in options.seeds
            for shape in SHAPES
        ]
        for future in futures:
            done.append(future.result())
            options.out.with_suffix(".json").write_text(json.dumps(facts | {"runs": done}) + "\n")
            options.out.with_suffix(".md").write_text(table(done))
    print(table(done))


if __name__ == "__main__":
    main()
