"""The verb `verify-resume`: compares a killed and resumed run with an uninterrupted one."""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import parse
from slm.errors import UserError
from slm.reports.figures.curves import read_events
from slm.training.checkpoint import open_checkpoint
from slm.training.runs import Run

TIMED = {"tokens_per_second"}
"""Curves of speed, which differ each time."""


@dataclass(frozen=True)
class VerifyResumeOptions:
    """The options of `verify-resume`; any other option is passed to `fit`."""

    steps: int = 24
    """Optimizer steps to train."""
    kills: int = 2
    """How often to kill the second run (SIGKILL, at random moments). Any other option is passed to
    fit."""

    def __post_init__(self) -> None:
        if self.steps < 2 or self.kills < 1:
            raise ValueError(
                f"--steps {self.steps} --kills {self.kills}; two steps or more, one kill or more"
            )


def verify_resume(arguments: Arguments) -> int:
    """Trains a config twice, once killed and resumed, and compares the results.

    Returns:
        The exit status: 0 if both are identical, else 1.
    """
    own = []
    for name in ("--steps", "--kills"):
        if (value := arguments.take(name)) is not None:
            own.append(f"{name}={value}")
    if {"-h", "--help"} & arguments.given:
        own.append("--help")
    usage = "slm verify-resume --config FILE [--steps N] [--kills N] [fit's options]"
    options = parse("verify-resume", VerifyResumeOptions, Arguments(own), usage)
    if not arguments.configs:
        arguments = arguments.with_config("quickstart")
    plan = [
        *arguments.with_configs_found(),
        "--trainer.max_steps", str(options.steps),
        "--val_interval", str(max(1, options.steps // 3)),
        "--save_interval", str(max(1, options.steps // 8)),
        "--trainer.log_every_n_steps", "1",
        "--trainer.limit_val_batches", "4",
        "--report", "false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slm-verify-resume-") as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        print(f"Training   {options.steps} steps without an interruption", file=sys.stderr)
        train(plan, whole)
        seconds = run_in(whole).record()[-1]["seconds"]
        moment = random.Random()
        for kill in range(options.kills):
            delay = moment.uniform(0, seconds / options.kills)
            step = train_and_kill(plan, parts, delay)
            print(
                f"Killed     {kill + 1} of {options.kills}, {delay:.1f} s after the first "
                f"checkpoint of this attempt; last.ckpt is at step {step}",
                file=sys.stderr,
            )
        train(plan, parts)
        found = compare_runs(run_in(whole), run_in(parts))
    for name, differences in found.items():
        print(f"{name:<18} {'; '.join(differences[:3]) or 'identical'}")
    if any(found.values()):
        print("Not identical: an interrupted run does not end where an uninterrupted one does.")
        return 1
    print("Identical, bit by bit: an interruption costs nothing but time.")
    return 0


def run_in(root: Path) -> Run:
    """The only run under a root."""
    return Run(root / "lightning_logs" / "version_0")


def fit_command(plan: Sequence[str], root: Path) -> list[str]:
    """The command that starts a training, or resumes it."""
    resume = ["--ckpt_path", "last"] if run_in(root).checkpoint("last").exists() else []
    where = ["--trainer.default_root_dir", str(root)]
    return [sys.executable, "-m", "slm.cli", "fit", *plan, *where, *resume]


def train(plan: Sequence[str], root: Path) -> None:
    """Trains to the end in a process of its own, or resumes the run that is under the root."""
    last = run_in(root).checkpoint("last")
    max_steps = int(plan[plan.index("--trainer.max_steps") + 1])
    if last.exists():
        checkpoint = open_checkpoint(last)
        if checkpoint.step >= max_steps and checkpoint.validated:
            return  # the kill came too late
    done = subprocess.run(fit_command(plan, root), capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise UserError(
            f"training ended with status {done.returncode}",
            "a config and options that train",
            "see above; try them with slm fit first",
        )


def train_and_kill(plan: Sequence[str], root: Path, delay: float, in_write: bool = False) -> int:
    """Trains or resumes, and kills the process `delay` seconds after its first checkpoint.

    With `in_write`, the kill then waits until the process writes another checkpoint. Returns the
    step of the last checkpoint; 0 if there is none.
    """
    last = run_in(root).checkpoint("last")
    before = last.stat().st_mtime_ns if last.exists() else 0
    with subprocess.Popen(
        fit_command(plan, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(delay)
        while in_write and process.poll() is None and not any(last.parent.glob("*.tmp-*")):
            pass
        process.kill()
    return open_checkpoint(last).step if last.exists() else 0


# ---- comparison ---------------------------------------------------------------------------


def compare_runs(one: Run, other: Run) -> dict[str, list[str]]:
    """The differences between two runs, by what was compared.

    Weights, optimizer state and learning-rate schedule in `last.ckpt` are compared bit by bit;
    curves by their steps, without repetition or gap, and their values.
    """
    first, second = (open_checkpoint(run.checkpoint("last")) for run in (one, other))
    parts = {"weights": "state_dict", "optimizer": "optimizer_states", "schedule": "lr_schedulers"}
    found = {
        name: differences(first.contents[key], second.contents[key]) for name, key in parts.items()
    }
    return found | {
        "step": differences(first.step, second.step),
        "curves": differences(curves(one.folder), curves(other.folder)),
    }


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two nested values differ; tensors and numbers must be equal bit by bit."""
    if type(one) is not type(other):
        return [f"{name} is {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name} has other names: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [
            found for key in one for found in differences(one[key], other[key], f"{name} {key}")
        ]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{name} has {len(one)} and {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for key, (a, b) in pairs for found in differences(a, b, f"{name} {key}")]
    if isinstance(one, torch.Tensor):
        if one.shape == other.shape and one.dtype == other.dtype and _bits(one) == _bits(other):
            return []
        return [f"{name.strip()} differs"]
    return [] if one == other else [f"{name.strip()} is {one} and {other}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Each curve as TensorBoard shows it: steps and values, in the order of the files."""
    events = read_events(run)
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in sorted(set(events.Tags()["scalars"]) - TIMED)
    }
