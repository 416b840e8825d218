"""The verb `verify-resume`: kills a training run, resumes it, and compares it with another."""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slm.commands.configs import find_configs
from slm.commands.lookup import take_option
from slm.commands.parsing import os_errors_explained, quick_parser
from slm.errors import UserError
from slm.reports.figures.curves import read_events
from slm.training.checkpoint import open_checkpoint
from slm.training.runs import read_record

TIMED = {"tokens_per_second"}
"""Curves that say how fast it was, which is another thing each time."""


@os_errors_explained()
def run_verify_resume(words: Sequence[str]) -> int:
    """Trains a config twice, once killed and resumed, and compares all that came of it.

    Args:
        words: The command line after the verb.

    Returns:
        The exit status: 0 if both are identical, else 1.

    Raises:
        UserError: The config cannot be trained.
    """
    parser = quick_parser(
        "verify-resume", "slm verify-resume --config FILE [--steps N] [--kills N] [fit's options]"
    )
    parser.add_argument("--steps", type=int, default=24, help="Optimizer steps to train.")
    parser.add_argument(
        "--kills",
        type=int,
        default=2,
        help="How often to kill the second run (SIGKILL, at random moments). Any other option is "
        "passed to fit.",
    )
    rest = list(words)
    own = [
        f"{name}={value}"
        for name in ("--steps", "--kills")
        if (value := take_option(rest, name)) is not None
    ]
    options = parser.parse_args([*own, *({"-h", "--help"} & set(rest))])
    if options.steps < 2 or options.kills < 1:
        raise UserError(
            f"--steps {options.steps} --kills {options.kills}",
            "two steps or more, and one kill or more",
            "--steps 24 --kills 2",
        )
    if not any(word.partition("=")[0] in ("-c", "--config") for word in rest):
        rest += ["--config", "quickstart"]
    plan = [
        *find_configs(rest),
        "--trainer.max_steps", str(options.steps),
        "--val_interval", str(max(1, options.steps // 3)),
        "--save_interval", str(max(1, options.steps // 8)),
        "--trainer.log_every_n_steps", "1",
        "--trainer.limit_val_batches", "4",
        "--report", "false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slm-verify-resume-") as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        print(f"Training   {options.steps} steps without a disturbance", file=sys.stderr)
        train(plan, whole)
        seconds = read_record(run_in(whole))[-1]["seconds"]
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
        print("Not identical: an interrupted run ends elsewhere than an uninterrupted one.")
        return 1
    print("Identical, bit by bit: nothing is lost by an interruption but time.")
    return 0


def run_in(root: Path) -> Path:
    """The one run under a root."""
    return root / "lightning_logs" / "version_0"


def command(plan: Sequence[str], root: Path) -> list[str]:
    """The command that trains by a plan, or continues to."""
    resume = (
        ["--ckpt_path", "last"] if (run_in(root) / "checkpoints" / "last.ckpt").exists() else []
    )
    where = ["--trainer.default_root_dir", str(root)]
    return [sys.executable, "-m", "slm.cli", "fit", *plan, *where, *resume]


def train(plan: Sequence[str], root: Path) -> None:
    """Trains until the end, in a process of its own; resumes the run that is there.

    Args:
        plan: Options of `fit`.
        root: Where its `lightning_logs` is.

    Raises:
        UserError: It does not train.
    """
    last = run_in(root) / "checkpoints" / "last.ckpt"
    max_steps = int(plan[plan.index("--trainer.max_steps") + 1])
    if last.exists():
        checkpoint = open_checkpoint(last)
        if checkpoint.step >= max_steps and checkpoint.validated:
            return  # the kill came too late
    done = subprocess.run(command(plan, root), capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise UserError(
            f"training ended with status {done.returncode}",
            "a config and options that train",
            "see above; try them with slm fit first",
        )


def train_and_kill(plan: Sequence[str], root: Path, delay: float, in_write: bool = False) -> int:
    """Trains, or resumes, and kills the process a while after it has written a checkpoint.

    Args:
        plan: Options of `fit`.
        root: Where its `lightning_logs` is.
        delay: Seconds from its first checkpoint to the kill.
        in_write: Whether to wait, after that, until it writes the next one.

    Returns:
        The step of the last checkpoint; 0 if there is none.
    """
    last = run_in(root) / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    with subprocess.Popen(
        command(plan, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(delay)
        while in_write and process.poll() is None and not any(last.parent.glob("*.tmp-*")):
            pass
        process.kill()
    return open_checkpoint(last).step if last.exists() else 0


# ---- comparison ---------------------------------------------------------------------------


def compare_runs(one: Path, other: Path) -> dict[str, list[str]]:
    """What differs between two runs, by what was compared; nothing if they are the same run.

    Quantization, optimizer state and learning-rate schedule in `last.ckpt` are compared bit by bit;
    curves by their steps, without repetition or gap, and their values.
    """
    first, second = (open_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other))
    return {
        "weights": differences(first.contents["state_dict"], second.contents["state_dict"]),
        "optimizer": differences(
            first.contents["optimizer_states"], second.contents["optimizer_states"]
        ),
        "schedule": differences(first.contents["lr_schedulers"], second.contents["lr_schedulers"]),
        "step": differences(first.step, second.step),
        "curves": differences(curves(one), curves(other)),
    }


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two nested values differ; tensors and numbers count as equal bit by bit."""
    if type(one) is not type(other):
        return [f"{name} is {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name} holds other names: {sorted(map(str, one.keys() ^ other.keys()))}"]
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
