"""What can be found wrong with a training run before anything is built."""

from collections.abc import Collection
from typing import Any

from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.training.checkpoint import Checkpoint
from slm.training.module import check_sizes


def check_against_checkpoint(options: Any, checkpoint: Checkpoint, *, resuming: bool) -> None:
    """Checks that the model is the checkpoint's and, on resuming, that there is more to train.

    Args:
        options: The parsed options of the verb.
        checkpoint: The opened checkpoint.
        resuming: Whether training is to go on from it.

    Raises:
        UserError: It does not fit.
    """
    checkpoint.check_shape(options.model.gpt.as_dict())
    before = checkpoint.entry["training"].get("name", "adamw")
    if resuming and options.model.optimizer.name != before:
        raise UserError(
            f"--model.optimizer.name {options.model.optimizer.name} for a run begun with {before}",
            "the same optimizer: what one has gathered means nothing to the other",
            f"--model.optimizer.name {before}, or begin anew from these weights: "
            f"--model.init_from {checkpoint.path}",
        )
    over = checkpoint.step >= options.trainer.max_steps and checkpoint.validated
    if resuming and options.budget is None and over:
        raise UserError(
            f"{checkpoint.path} has already been trained for {checkpoint.step} steps",
            f"more steps to train than that, not --trainer.max_steps {options.trainer.max_steps}",
            f"--trainer.max_steps {2 * checkpoint.step}",
        )


def check_vocabulary(data: StoryData, checkpoint: Checkpoint) -> None:
    """Checks that training data speak a checkpoint's vocabulary, before they are prepared.

    Raises:
        UserError: They do not, or would be given a vocabulary of their own.
    """
    known = data.known_tokenizer()
    checkpoint.check_tokenizer(
        known or {"name": "own", "n_vocab": data.corpus.vocab_size, "sha256": "to be learnt"}
    )


def check_vocabulary_size(data: StoryData, n_vocab: int) -> None:
    """Checks that the data will have the model's vocabulary, before they are prepared.

    Args:
        data: The data, prepared or not.
        n_vocab: Size of the model's vocabulary.

    Raises:
        UserError: They will not.
    """
    known = data.known_tokenizer()
    check_sizes(known["n_vocab"] if known else data.corpus.vocab_size, n_vocab)


def check_effects(options: Any, given: Collection[str]) -> None:
    """Checks that what was typed has an effect.

    Args:
        options: The parsed options of `fit`.
        given: Names of the options on the command line.

    Raises:
        UserError: An option belongs to a choice that was not made.
    """
    optimizer = options.model.optimizer
    for field, choice, needed in (
        ("muon_lr", "name", "muon"),
        ("muon_momentum", "name", "muon"),
        ("cooldown_share", "schedule", "trapezoid"),
    ):
        if f"--model.optimizer.{field}" in given and optimizer[choice] != needed:
            raise UserError(
                f"--model.optimizer.{field} with {choice} {optimizer[choice]}, which has none",
                f"--model.optimizer.{choice} {needed}",
                f"add --model.optimizer.{choice} {needed}, or leave the option out",
            )


def check_plan(options: Any) -> None:
    """Checks the numbers that training is planned by.

    Args:
        options: The parsed options of `fit`.

    Raises:
        UserError: One is out of range, or means something else than a user would think.
    """
    if options.budget is None and options.trainer.max_steps < 1:
        raise UserError(
            f"--trainer.max_steps {options.trainer.max_steps}",
            "the number of optimizer steps to train; the learning rate is planned by it",
            "--trainer.max_steps 1000, --budget 20m, or a config: --config configs/quickstart.yaml",
        )
    for name, value in (
        ("val_interval", options.val_interval),
        ("save_interval", options.save_interval),
        ("trainer.log_every_n_steps", options.trainer.log_every_n_steps or 1),
        ("trainer.accumulate_grad_batches", options.trainer.accumulate_grad_batches),
    ):
        if value < 1:
            raise UserError(f"--{name} {value}", "1 or more", f"--{name} 1")
    if options.trainer.log_every_n_steps == 0:
        raise UserError("--trainer.log_every_n_steps 0", "1 or more", "--trainer.logger false")
    if options.trainer.val_check_interval is not None:
        raise UserError(
            f"--trainer.val_check_interval {options.trainer.val_check_interval}, which "
            "counts micro-batches",
            "the interval in optimizer steps",
            "--val_interval STEPS",
        )
    if options.trainer.gradient_clip_algorithm not in (None, "norm"):
        raise UserError(
            f"--trainer.gradient_clip_algorithm {options.trainer.gradient_clip_algorithm}",
            "norm, the only way of clipping here",
            "leave the option out",
        )
