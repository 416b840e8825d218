"""Continuing from a checkpoint: what it must have in common with the new options."""

import sys
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slm.data.tokenizer import CHECKPOINT_KEY

_SCHEDULE = "The learning rate continues on another curve; it may jump."
_STEPS = "Steps have another size; training continues after the last window it has seen."
_ORDER = "Windows come in another order; some may come twice, others not at all."
EFFECTS = {
    **dict.fromkeys(
        ("lr", "min_lr_ratio", "warmup_steps", "decay_steps", "schedule", "cooldown_share"),
        _SCHEDULE,
    ),
    **dict.fromkeys(("batch_size", "accumulate_grad_batches", "processes"), _STEPS),
    **dict.fromkeys(("seed", "order"), _ORDER),
    "train.bin": "The stories differ from those it was trained on; a fresh optimizer may suit them "
    "better: --model.init_from.",
    "precision": "Results will differ by rounding.",
}
"""What a changed option means for a resumed run."""


def prepare_to_resume(
    checkpoint: dict[str, Any], options: dict[str, Any], micro_batches: int
) -> None:
    """Aligns a checkpoint's counters in place, and prints which options differ and their effects.

    `options` and `micro_batches`, per optimizer step, are those of the run that resumes it.
    """
    _align_progress(checkpoint, micro_batches)
    before = checkpoint[CHECKPOINT_KEY]["training"]
    changed = [name for name in options if before.get(name, options[name]) != options[name]]
    if changed:
        step = checkpoint["global_step"]
        changes = ", ".join(f"{name} {before[name]} -> {options[name]}" for name in changed)
        _print(f"From step {step} on, unlike before: {changes}")
        for effect in dict.fromkeys(EFFECTS[name] for name in EFFECTS if name in changed):
            _print(f"           {effect}")


@rank_zero_only
def _print(message: str) -> None:
    print(message, file=sys.stderr)


def _align_progress(checkpoint: dict[str, Any], micro_batches: int) -> None:
    """Resets Lightning's batch counters to the last complete optimizer step.

    A run that is interrupted between two optimizer steps saves counters that point into the middle
    of an accumulation whose gradients are lost; continuing from there would make one step from too
    few micro-batches. The data module restarts after the last complete step, and so must they.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batches = checkpoint["global_step"] * micro_batches
    for counters in ("total", "current"):
        for progress, count in (
            (loop["epoch_loop.batch_progress"], batches),
            # A validation that was under way starts again.
            (loop["epoch_loop.val_loop.batch_progress"], 0),
        ):
            progress[counters] = dict.fromkeys(progress[counters], count)
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]


def apply_options(
    optimizer: Optimizer, scheduler: LambdaLR, options: list[dict[str, Any]], step: int
) -> None:
    """Lets the options given now override those that a checkpoint, at `step`, has restored.

    Optimizer and LambdaLR restore their old settings; without this, a new learning rate on the
    command line would be ignored silently.
    """
    scheduler.base_lrs = [group["lr"] for group in options]
    scheduler.last_epoch = step
    factor = scheduler.lr_lambdas[0](step)
    for group, given in zip(optimizer.param_groups, options, strict=True):
        group |= given | {"initial_lr": given["lr"], "lr": given["lr"] * factor}


def seed_generators(device: torch.device, seed: int) -> None:
    """Seeds torch's random numbers on the CPU and on a device.

    `torch.manual_seed` seeds every kind of device each time, which takes a tenth of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
