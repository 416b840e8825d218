"""What a checkpoint contains besides Lightning's own state, and what happens when it is resumed."""

import sys
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slm.data.datamodule import StoryData
from slm.data.tokenizer import CHECKPOINT_KEY, Tokenizer
from slm.training.checkpoint import FORMAT_VERSION

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


def checkpoint_entry(
    tokenizer: Tokenizer, data: StoryData | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint of this project adds to Lightning's, in plain types.

    Args:
        tokenizer: The model's tokenizer.
        data: The data it is trained on.
        options: What determines the course of the run.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.to_plain(),
        "data": data.manifest.to_plain() if data else None,
        "training": options,
    }


def data_options(data: StoryData) -> dict[str, Any]:
    """The data's part of what determines the course of a run."""
    return {
        "batch_size": data.batch_size,
        "seed": data.seed,
        "order": data.order,
        "train.bin": data.manifest.splits["train"].sha256[:12],
    }


def prepare_to_resume(
    checkpoint: dict[str, Any], options: dict[str, Any], micro_batches: int
) -> None:
    """Aligns a checkpoint's counters, and prints which options have changed and their effects.

    Args:
        checkpoint: Everything that Lightning saved; changed in place.
        options: What determines the course of the run now.
        micro_batches: Per optimizer step, from now on.
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
    """Lets the options given now override those that a checkpoint has restored.

    Optimizer and LambdaLR restore their old settings; without this, a new learning rate on the
    command line would be ignored silently.

    Args:
        optimizer: The optimizer, changed.
        scheduler: Its schedule, changed.
        options: Of each parameter group, as given now.
        step: Optimizer steps taken.
    """
    scheduler.base_lrs = [group["lr"] for group in options]
    scheduler.last_epoch = step
    factor = scheduler.lr_lambdas[0](step)
    for group, given in zip(optimizer.param_groups, options, strict=True):
        group |= given | {"initial_lr": given["lr"], "lr": given["lr"] * factor}
