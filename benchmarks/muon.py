"""Measures Muon's share of a training step; computes its coefficients.

    python benchmarks/muon.py                 a step's parts, with our Muon and with torch's
    python benchmarks/muon.py --coefficients  the polynomials of slm/training/muon.py

Every variant trains the model of `configs/modern-5min.yaml` on random tokens, compiled. Variants
are interleaved; medians are reported. In float32 nothing is multiplied in bfloat16, as on a CPU
without it (except in torch's Muon, which supports no other dtype).
"""

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from slm import hardware
from slm.commands.parsing.configs import find_config, model_of_config, read_config
from slm.model import GPT
from slm.training.loss import NextTokenLoss
from slm.training.memory import keep_freed_memory
from slm.training.muon import Muon, MuonAdamW
from slm.training.optimization import OptimizerOptions, make_optimizer
from slm.training.precision import autocast

Polynomial = tuple[float, float, float]


def best_polynomial(lowest: float, highest: float) -> tuple[Polynomial, float]:
    """The a s + b s³ + c s⁵ that is nearest to 1 from `lowest` to `highest`, by Remez' algorithm.

    Returns:
        The coefficients, and how far from 1 it gets.
    """
    inner = np.array([0.75 * lowest + 0.25 * highest, 0.25 * lowest + 0.75 * highest])
    while True:
        s = np.array([lowest, *inner, highest])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        a, b, c, error = np.linalg.solve(np.stack([s, s**3, s**5, signs], 1), np.ones(4))
        extremes = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a]).real))
        if np.abs(extremes - inner).max() < 1e-12:
            return (float(a), float(b), float(c)), abs(float(error))
        inner = extremes


def coefficients(smallest: float, iterations: int, slack: float) -> tuple[list[Polynomial], float]:
    """A sequence of polynomials, each for the range to which those before map [smallest, 1].

    Args:
        smallest: The smallest singular value to bring near 1.
        iterations: How many.
        slack: Factor by which rounding may exceed the upper end.

    Returns:
        The polynomials, and how far from 1 the last gets.
    """
    lowest, highest, found, error = smallest, 1.0, [], 0.0
    for _ in range(iterations):
        polynomial, error = best_polynomial(lowest, highest * slack)
        found.append(polynomial)
        lowest, highest = 1 - error, 1 + error
    return found, error


def with_torchs_muon(optimizer: Optimizer) -> Optimizer:
    """Replaces our Muon with torch's."""
    assert isinstance(optimizer, MuonAdamW)
    ours, adamw = optimizer.parts
    assert isinstance(ours, Muon)
    (group,) = ours.param_groups
    options = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
    optimizer.parts = [torch.optim.Muon(group["params"], **options), adamw]
    return optimizer


def variant(precision: str, torchs: bool) -> Callable[[], dict[str, float]]:
    """A step of training, which returns the seconds of its parts."""
    file = find_config("modern-5min")
    gpt, config = model_of_config(file), read_config(file)
    torch.manual_seed(0)
    model, loss_of = GPT(gpt), NextTokenLoss(compile=True)
    options = OptimizerOptions(**config["model"]["optimizer"])
    optimizer = make_optimizer(model, options, fused=True)
    if torchs:
        optimizer = with_torchs_muon(optimizer)
    assert isinstance(optimizer, MuonAdamW)
    tokens = torch.randint(gpt.vocab_size, (config["data"]["batch_size"], gpt.block_size))
    targets = tokens.clone()

    def step() -> dict[str, float]:
        marks = [hardware.clock("cpu")]
        with autocast(precision, "cpu"):
            loss = loss_of(model, tokens, targets)
        torch.autograd.backward(loss)
        marks.append(hardware.clock("cpu"))
        clip_grad_norm_(model.parameters(), 1.0)
        for part in optimizer.parts:
            marks.append(hardware.clock("cpu"))
            part.step()
        marks.append(hardware.clock("cpu"))
        loss_of.recycle(model)
        optimizer.zero_grad()
        names = ("loss", "clipping", "muon", "adamw")
        return dict(zip(names, np.diff(marks).tolist(), strict=True))

    return step


def as_if_without_bfloat16() -> AbstractContextManager[Any]:
    """Makes our Muon treat the CPU as one without native bfloat16."""
    return patch.object(hardware, "_cpu_multiplies_bfloat16", lambda: False)


def measure(steps: int) -> dict[str, dict[str, float]]:
    """Medians of the parts' seconds, by variant."""
    formats = ["32-true"]
    if hardware.multiplies_natively(torch.bfloat16, "cpu"):
        formats.append("bf16-mixed")
    variants = {
        f"{precision}, {'torch' if torchs else 'slm'}": (precision, variant(precision, torchs))
        for precision in formats
        for torchs in (False, True)
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(steps + 2):
        for name, (precision, step) in variants.items():
            with as_if_without_bfloat16() if precision == "32-true" else nullcontext():
                found = step()
            if number >= 2:
                times[name].append(found)
    return {
        name: {part: statistics.median(t[part] for t in each) for part in each[0]}
        for name, each in times.items()
    }


def main() -> None:
    """Prints a row for each variant, or the polynomials."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coefficients", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.coefficients:
        found, error = coefficients(0.01, iterations=3, slack=1.02)
        for polynomial in found:
            print("    ({:.4f}, {:.4f}, {:.4f}),".format(*polynomial))
        print(f"singular values from 0.01 to 1 into 1 ± {error:.2f}")
        return
    keep_freed_memory()
    machine = hardware.describe_machine("cpu")
    print(machine)
    measured = measure(options.steps)
    for name, parts in measured.items():
        share = parts["muon"] / sum(parts.values())
        timings = ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in parts.items())
        print(f"{name:18} {timings}: Muon {share:.1%} of the step")
    if options.out:
        facts = {"machine": machine, "steps": options.steps, "seconds": measured}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
