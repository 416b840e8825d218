"""Kills a training run at random moments, resumes it, and compares it with an undisturbed one.

    python benchmarks/kill_resume.py --trials 20 --out benchmarks/DATE-kill-resume.json

For each recipe: one run without a disturbance, then trials. A trial trains, is killed (SIGKILL) at
a random moment, every second one while it writes a checkpoint, and is resumed until the end. Final
weights, optimizer state, learning-rate schedule and all curves must be identical bit by bit.
Takes about ten minutes for each recipe on two cores.
"""

import argparse
import json
import os
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import yaml

from slm import __version__
from slm.commands.verify_resume import compare_runs, run_in, train, train_and_kill
from slm.hardware import describe_machine

CONFIG = {
    "val_interval": 10,
    "save_interval": 3,
    "report": False,
    "model": {
        "gpt": {
            "block_size": 64, "vocab_size": 512, "n_layer": 3, "n_head": 2, "n_embd": 64,
            "dropout": 0.1,
        },
        "optimizer": {"lr": 0.003, "warmup_steps": 10},
    },
    "data": {"source": "builtin", "tokenizer": "bpe", "vocab_size": 512, "batch_size": 8},
    "trainer": {
        "max_steps": 60, "accelerator": "cpu", "accumulate_grad_batches": 2,
        "log_every_n_steps": 4, "limit_val_batches": 8, "precision": "32-true",
    },
}  # fmt: skip
RECIPES = {
    "AdamW, float32": [],
    "AdamW, bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "Muon, float32": ["--model.optimizer.name", "muon", "--model.optimizer.muon_lr", "0.02"],
    "AdamW, float32, two processes": [
        "--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "4",
    ],
}  # fmt: skip


def measure(options: list[str], trials: int, seed: int, folder: Path) -> dict[str, object]:
    """Runs the trials of one recipe."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    plan = ["--config", str(config), "--data.root", str(folder / "data"), *options]
    plan += ["--trainer.max_steps", str(CONFIG["trainer"]["max_steps"])]  # type: ignore[index]
    whole = folder / "whole"
    train(plan, whole)
    seconds = run_in(whole).record()[-1]["seconds"]
    moments = random.Random(seed)
    results = []
    for trial in range(trials):
        root = folder / f"trial-{trial}"
        in_write = trial % 2 == 1
        # The first checkpoint is written at a twentieth of the way.
        delay = moments.uniform(0, 0.7 * seconds)
        step = train_and_kill(plan, root, delay, in_write)
        left = len(list((run_in(root).folder / "checkpoints").glob("*.tmp-*")))
        train(plan, root)
        found = compare_runs(run_in(whole), run_in(root))
        leftovers = len(list((run_in(root).folder / "checkpoints").glob("*.tmp-*")))
        results.append(
            {
                "delay": round(delay, 3),
                "in_write": in_write,
                "resumed_at": step,
                "unfinished_files": left,
                "unfinished_files_after_resume": leftovers,
                "differences": {what: lines for what, lines in found.items() if lines},
            }
        )
        print(f"  {trial + 1:>2} of {trials}: {results[-1]}", flush=True)
    return {
        "undisturbed_seconds": seconds,
        "identical": sum(not result["differences"] for result in results),
        "killed_in_a_write": sum(bool(result["unfinished_files"]) for result in results),
        "trials": results,
    }


def main() -> None:
    """Measures all recipes and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=RECIPES, action="append", help="one of the recipes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(torch.device("cpu")),
        "versions": {"slm": __version__, "torch": torch.__version__},
        "config": CONFIG,
    }
    recipes: dict[str, object] = {}
    for name in options.only or RECIPES:
        print(name, flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = measure(RECIPES[name], options.trials, options.seed, Path(folder))
        recipes[name] = result
        took = time.perf_counter() - started
        print(f"  {result['identical']} of {options.trials} identical, {took:.0f} s", flush=True)
    figures["recipes"] = recipes
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
