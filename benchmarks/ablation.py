"""What each switch of the recipe is worth: added to the classic model, removed from ours.

Usage:

    python benchmarks/ablation.py FOLDER --steps 300 --seeds 1 2 --out ablation

FOLDER contains `train.txt` and `validation.txt`. Each variant is a whole `slm fit` of
`ablation.yaml` with some options changed, on one core; as many run at once as there are cores.
First all variants train for the same number of tokens. Then every variant's step is timed on one
core against its base's, in three pairs, and those that differ by more than 5 % train again for the
number of steps that takes as long as the base did, so that there is a comparison at equal time too.

Written are `OUT.json` with every run, `OUT.md` with the table and `OUT.png` with the curves. Runs
that OUT.json already holds are not done again, so the command can be interrupted and repeated, and
`--only NAME` limits it to some variants.
"""

import argparse
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("ablation.yaml")

SWITCHES = {
    "Muon": (
        "--model.optimizer.name muon --model.optimizer.lr 0.02",
        "--model.optimizer.name adamw --model.optimizer.lr 0.003",
    ),
    "rotary positions": ("--model.gpt.position rotary", "--model.gpt.position learned"),
    "RMSNorm": ("--model.gpt.norm rms", "--model.gpt.norm layer"),
    "QK-norm": ("--model.gpt.qk_norm true", "--model.gpt.qk_norm false"),
    "straight line": (
        "--model.optimizer.schedule trapezoid --model.optimizer.cooldown_share 1.0",
        "--model.optimizer.schedule cosine",
    ),
    "epochs": ("--data.order epochs", "--data.order random"),
}
"""Of the recipe: how each is added to the classic model, and how it is removed from ours."""

OTHERS = {
    "SwiGLU": "--model.gpt.mlp swiglu",
    "untied head": "--model.gpt.tied false",
    "weight decay 0.1": "--model.optimizer.weight_decay 0.1",
}
"""Not of the recipe: added to ours."""

RATES = {
    "classic + lr 0.0015": "--model.optimizer.lr 0.0015",
    "classic + lr 0.006": "--model.optimizer.lr 0.006",
}
"""These show that the classic base has a good learning rate."""


def variants() -> dict[str, list[str]]:
    """The options of every variant; those of `classic` and `ours` are the two bases."""
    ours = " ".join(added for added, _ in SWITCHES.values())
    found = {"classic": "", "ours": ours}
    found |= {f"classic + {name}": added for name, (added, _) in SWITCHES.items()}
    found |= {f"ours - {name}": f"{ours} {removed}" for name, (_, removed) in SWITCHES.items()}
    found |= {f"ours + {name}": f"{ours} {added}" for name, added in OTHERS.items()}
    found |= RATES
    return {name: options.split() for name, options in found.items()}


def base_of(variant: str) -> str:
    """`classic` or `ours`."""
    return variant.split()[0]


def run(variant: str, options: list[str], seed: int, steps: int, core: int, folder: Path) -> Any:
    """One training on one core, and what came out."""
    from slm.reports.figures.curves import read_run

    def pin() -> None:
        os.sched_setaffinity(0, {core})

    with tempfile.TemporaryDirectory() as root:
        result = subprocess.run(
            [
                sys.executable, "-m", "slm.cli", "fit", "--config", str(CONFIG),
                "--data.source", str(folder), "--seed_everything", str(seed),
                "--trainer.max_steps", str(steps), "--trainer.default_root_dir", root, *options,
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=pin, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        if result.returncode:
            raise RuntimeError(f"{variant}: {result.stderr}")
        version = Path(root) / "lightning_logs" / "version_0"
        curves = read_run(version).scalars
    return {
        "arm": variant,
        "seed": seed,
        "steps": steps,
        "bits_per_byte": float(re.findall(r"bits_per_byte ([\d.]+)", result.stderr)[-1]),
        "tokens": curves["tokens_seen"][1].tolist(),
        "train_loss": curves["train_loss"][1].tolist(),
    }


def load(out: Path) -> Any:
    """OUT.json: `runs`, and `times`, the steps of each variant relative to its base's."""
    path = out.with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {"runs": [], "times": {}}


def time_steps(variant: str) -> float:
    """How much longer a step of a variant takes than one of its base, median of three pairs."""
    import torch
    from jsonargparse import get_loader

    from slm.commands.parsing.configs import read_config
    from slm.model import GPTConfig
    from slm.training.optimization import OptimizerOptions
    from slm.training.probe import measure

    def configs(name: str) -> tuple[GPTConfig, OptimizerOptions]:
        model = read_config(CONFIG)["model"]
        options = variants()[name]
        for key, value in zip(options[::2], options[1::2], strict=True):
            part, _, field = key.removeprefix("--model.").partition(".")
            if part in model:
                model[part][field] = get_loader("yaml")(value)
        return GPTConfig(**model["gpt"]), OptimizerOptions(**model["optimizer"])

    def seconds(name: str) -> float:
        torch.compiler.reset()  # it gives up after eight shapes of one function
        found = measure(
            *configs(name), torch.device("cpu"), batch_size=8, precision="bf16-mixed", compile=True
        )
        assert found is not None
        return found.step_seconds(1)

    (gpt, optimizer), (base_gpt, base_optimizer) = configs(variant), configs(base_of(variant))
    if gpt == base_gpt and optimizer.name == base_optimizer.name:
        return 1.0
    torch.set_num_threads(1)
    return statistics.median(seconds(variant) / seconds(base_of(variant)) for _ in range(3))


def run_all(jobs: list[tuple[str, int, int]], folder: Path, out: Path) -> list[Any]:
    """Runs what OUT.json does not hold yet, one job a core, and returns everything it holds."""
    path = out.with_suffix(".json")
    everything = load(out)
    done = everything["runs"]
    known = {(r["arm"], r["seed"], r["steps"]) for r in done}
    waiting: queue.Queue[tuple[str, int, int]] = queue.Queue()
    for job in jobs:
        if job not in known:
            waiting.put(job)
    lock, failures = threading.Lock(), []

    def work(core: int) -> None:
        while True:
            try:
                variant, seed, steps = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = run(variant, variants()[variant], seed, steps, core, folder)
            except RuntimeError as error:
                failures.append(str(error))
                return
            with lock:
                done.append(result)
                path.write_text(json.dumps(everything) + "\n")
                print(f"{variant:<28} seed {seed}  {steps:>5} steps  {result['bits_per_byte']:.4f}",
                      flush=True)  # fmt: skip

    threads = [threading.Thread(target=work, args=(c,)) for c in sorted(os.sched_getaffinity(0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))
    return done


def table(done: list[Any], steps: int, timed: dict[str, int]) -> str:
    """The comparison as Markdown: bits per byte of each seed, and the gain over the base."""

    def scores(variant: str, count: int) -> dict[int, float]:
        runs = [r for r in done if r["arm"] == variant and r["steps"] == count]
        return {r["seed"]: r["bits_per_byte"] for r in sorted(runs, key=lambda r: r["seed"])}

    def gain(mine: dict[int, float], base: dict[int, float]) -> str:
        gains = [base[seed] - bits for seed, bits in mine.items() if seed in base]
        return f"{statistics.mean(gains):+.4f}" if gains else ""

    lines = [
        "| variant | bits per byte, each seed | gain at equal tokens | steps in equal time | "
        "gain at equal time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for variant in variants():
        mine, base = scores(variant, steps), scores(base_of(variant), steps)
        if not mine:
            continue
        in_time, bits = timed.get(variant, steps), ", ".join(f"{b:.4f}" for b in mine.values())
        plain = variant in ("classic", "ours")
        lines.append(
            f"| **{variant}** | {bits} | | | |"
            if plain
            else f"| {variant} | {bits} | {gain(mine, base)} | {in_time} | "
            f"{gain(scores(variant, in_time), base)} |"
        )
    all_scores = [scores(variant, steps).values() for variant in variants()]
    spread = [max(bits) - min(bits) for bits in all_scores if len(bits) > 1]
    if spread:
        lines.append(f"\nSpread of the seeds: median {statistics.median(spread):.4f}, "
                     f"largest {max(spread):.4f} bits per byte.")  # fmt: skip
    return "\n".join(lines) + "\n"


def draw(done: list[Any], steps: int, path: Path) -> None:
    """Training loss against tokens, smoothed, first seed: each base with its variants."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, base in zip(figure.subplots(1, 2, sharey=True), ("classic", "ours"), strict=True):
        chosen = [r for r in done if base_of(r["arm"]) == base and r["steps"] == steps]
        first = min((r["seed"] for r in chosen), default=0)
        chosen = sorted((r for r in chosen if r["seed"] == first), key=lambda r: r["bits_per_byte"])
        for index, result in enumerate(chosen):
            smooth, value = [], None
            for loss in result["train_loss"]:
                value = loss if value is None else 0.9 * value + 0.1 * loss
                smooth.append(value)
            plain = result["arm"] == base
            axes.plot(
                [t / 1e6 for t in result["tokens"]], smooth,
                label=f"{result['bits_per_byte']:.3f}  {result['arm']}",
                color="black" if plain else f"C{index % 10}",
                linestyle=("-", "--", ":")[index // 10 % 3], linewidth=2.2 if plain else 1.0,
            )  # fmt: skip
        axes.set(xlabel="million tokens", title=base, ylim=(3.0, 5.0))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, title="bits per byte at the end", title_fontsize=7)
    figure.axes[0].set_ylabel("training loss (nats per token), smoothed")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    parser.add_argument("--only", nargs="+", help="some variants; the bases are always run")
    options = parser.parse_args()
    wanted = [a for a in variants() if not options.only or a in (*options.only, "classic", "ours")]
    folder = options.folder.resolve()
    jobs = [(variant, seed, options.steps) for seed in options.seeds for variant in wanted]
    run_all(jobs, folder, options.out)
    everything = load(options.out)
    for variant in wanted:
        if variant != base_of(variant) and variant not in everything["times"]:
            everything["times"][variant] = time_steps(variant)
            options.out.with_suffix(".json").write_text(json.dumps(everything) + "\n")
            print(
                f"{variant:<28} {everything['times'][variant]:.3f} of its base's time", flush=True
            )
    timed = {
        variant: round(options.steps / ratio) for variant, ratio in everything["times"].items()
    }
    timed = {a: s for a, s in timed.items() if a in wanted and abs(s / options.steps - 1) > 0.05}
    jobs = [(variant, seed, steps) for seed in options.seeds for variant, steps in timed.items()]
    done = run_all(jobs, folder, options.out)
    options.out.with_suffix(".md").write_text(table(done, options.steps, timed))
    draw(done, options.steps, options.out.with_suffix(".png"))
    print(table(done, options.steps, timed))


if __name__ == "__main__":
    main()
