"""A typed view of the options of `fit`, and their checks before anything is built."""

from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import Namespace

from slm.data.cleaning import Cleaning
from slm.data.datamodule import StoryData
from slm.errors import UserError, user_errors
from slm.files import quoted
from slm.model import GPTConfig
from slm.training.checkpoint import Checkpoint, check_vocabulary_size
from slm.training.optimization import OptimizerOptions
from slm.training.precision import Precision


@dataclass(frozen=True)
class TrainerOptions:
    """The Trainer's options that this project reads."""

    accelerator: str
    devices: Any
    num_nodes: int
    precision: Precision
    max_steps: int
    min_steps: int | None
    max_time: Any
    accumulate_grad_batches: int
    log_every_n_steps: int | None
    val_check_interval: int | float | None
    gradient_clip_algorithm: str | None
    gradient_clip_val: int | float | None = None
    max_epochs: int | None = None
    min_epochs: int | None = None
    check_val_every_n_epoch: int | None = None
    reload_dataloaders_every_n_epochs: int = 0
    limit_train_batches: int | float | None = None
    overfit_batches: int | float = 0
    logger: Any = None
    enable_checkpointing: bool | None = None
    fast_dev_run: int | bool = False
    barebones: bool = False


_EPOCHS = {
    "max_epochs": (None, -1),
    "min_epochs": (None,),
    "min_steps": (None,),
    "check_val_every_n_epoch": (None,),
    "reload_dataloaders_every_n_epochs": (0,),
    "limit_train_batches": (None,),
    "overfit_batches": (0,),
}
"""Trainer options that have no meaning without epochs, and their neutral values."""


@dataclass(frozen=True)
class FitOptions:
    """What a training run is planned by."""

    gpt: GPTConfig
    optimizer: OptimizerOptions
    compile: bool
    data: StoryData
    trainer: TrainerOptions
    val_interval: int
    save_interval: int
    budget: str | None
    check_device: bool
    given: frozenset[str]
    """Names of the options on the command line, with their dashes."""

    @classmethod
    @user_errors("slm fit --help explains the options")
    def of(cls, parsed: Namespace, given: frozenset[str]) -> "FitOptions":
        """The options that LightningCLI has parsed."""
        data = parsed.data.as_dict()
        return cls(
            gpt=GPTConfig(**parsed.model.gpt.as_dict()),
            optimizer=OptimizerOptions(**parsed.model.optimizer.as_dict()),
            compile=parsed.model.compile,
            data=StoryData(**data | {"clean": Cleaning(**data["clean"])}),
            trainer=TrainerOptions(
                **{field.name: parsed.trainer[field.name] for field in fields(TrainerOptions)}
            ),
            val_interval=parsed.val_interval,
            save_interval=parsed.save_interval,
            budget=parsed.budget,
            check_device=parsed.check_device,
            given=given,
        )


def check_options(options: FitOptions) -> None:
    """Checks options against each other."""
    if options.budget is not None:
        _check_budget(options)
    _check_numbers(options)
    _check_lightning(options.trainer)
    for field, choice, needed in (
        ("muon_lr", "name", "muon"),
        ("muon_momentum", "name", "muon"),
        ("cooldown_share", "schedule", "trapezoid"),
    ):
        chosen = getattr(options.optimizer, choice)
        if f"--model.optimizer.{field}" in options.given and chosen != needed:
            raise UserError(
                f"--model.optimizer.{field} has no effect with {choice} {chosen}",
                f"--model.optimizer.{choice} {needed}",
                f"add --model.optimizer.{choice} {needed}, or leave the option out",
            )


def _check_budget(options: FitOptions) -> None:
    trainer = options.trainer
    ends = {"--trainer.max_steps", "--model.optimizer.decay_steps"} & options.given
    ends |= {"--trainer.max_time"} if trainer.max_time else set()
    if ends:
        name = min(ends)
        raise UserError(
            f"{name} in a run with a budget of {options.budget}",
            "one option that determines when training ends",
            f"leave {name} out, or plan by steps: --budget null --trainer.max_steps 1000",
        )
    if trainer.devices not in ("auto", 1, "1") or trainer.num_nodes != 1:
        raise UserError(
            f"--budget with --trainer.devices {trainer.devices}",
            "one device: the plan is made from measurements on one",
            "--trainer.devices 1, or plan by --trainer.max_steps",
        )


def _check_numbers(options: FitOptions) -> None:
    trainer = options.trainer
    if options.budget is None and trainer.max_steps < 1:
        raise UserError(
            f"--trainer.max_steps {trainer.max_steps}",
            "the number of optimizer steps to train; the learning-rate schedule ends there",
            "--trainer.max_steps 1000, --budget 20m, or a config: --config configs/quickstart.yaml",
        )
    for name, value in (
        ("val_interval", options.val_interval),
        ("save_interval", options.save_interval),
        ("trainer.log_every_n_steps", trainer.log_every_n_steps or 1),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches),
    ):
        if value < 1:
            raise UserError(f"--{name} {value}", "1 or more", f"--{name} 1")
    if trainer.log_every_n_steps == 0:
        raise UserError("--trainer.log_every_n_steps 0", "1 or more", "leave it out")
    if trainer.val_check_interval is not None:
        raise UserError(
            f"--trainer.val_check_interval {trainer.val_check_interval}, which counts "
            "micro-batches",
            "the interval in optimizer steps",
            "--val_interval STEPS",
        )
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        raise UserError(
            f"--trainer.gradient_clip_algorithm {trainer.gradient_clip_algorithm}",
            "norm, the only way of clipping here",
            "leave the option out",
        )


def _check_lightning(trainer: TrainerOptions) -> None:
    """Rejects Trainer options that have no meaning here or that fail silently."""
    for name, neutral in _EPOCHS.items():
        value = getattr(trainer, name)
        if value not in neutral and not (name == "limit_train_batches" and str(value) == "1.0"):
            raise UserError(
                f"--trainer.{name} {value}",
                "no epoch options: batches are sampled indefinitely, until max_steps",
                f"remove --trainer.{name}; --trainer.max_steps sets the length of training, "
                "--data.source the data",
            )
    if (trainer.gradient_clip_val or 0) < 0:
        raise UserError(
            f"--trainer.gradient_clip_val {trainer.gradient_clip_val}, which reverses gradients",
            "a maximum gradient norm above 0; 0 or null disables clipping",
            "--trainer.gradient_clip_val 1.0",
        )
    saves = trainer.enable_checkpointing is not False and not trainer.fast_dev_run
    if trainer.logger is not None and not trainer.logger and saves:
        raise UserError(
            "--trainer.logger false: without a logger runs have no folder of their own, and this "
            "run's checkpoints would overwrite another's",
            "a logger, or checkpointing disabled",
            "remove the option, or add --trainer.enable_checkpointing false",
        )
    if trainer.barebones:
        raise UserError(
            "--trainer.barebones true, which disables logging and checkpoints",
            "a run with a log and checkpoints",
            "remove it; to measure the speed of training, use slm bench train",
        )


def check_resumed(options: FitOptions, checkpoint: Checkpoint) -> None:
    """Checks that training can continue from a checkpoint, and has steps left."""
    before = checkpoint.entry["training"].get("name", "adamw")
    if options.optimizer.name != before:
        raise UserError(
            f"--model.optimizer.name {options.optimizer.name} for a run begun with {before}",
            "the same optimizer: the state of one means nothing to the other",
            f"--model.optimizer.name {before}, or a new run from these weights: "
            f"--model.init_from {quoted(checkpoint.path)}",
        )
    max_steps = options.trainer.max_steps
    if options.budget is None and checkpoint.step >= max_steps and checkpoint.validated:
        raise UserError(
            f"{checkpoint.path} has already been trained for {checkpoint.step} steps",
            f"more steps to train than that, not --trainer.max_steps {max_steps}",
            f"--trainer.max_steps {2 * checkpoint.step}",
        )


def check_data(options: FitOptions, data: StoryData, initial: Checkpoint | None) -> None:
    """Checks the data's vocabulary, before they are prepared, against the model and its weights."""
    known = data.known_tokenizer()
    if initial is not None:
        initial.check_tokenizer(
            known or {"name": "own", "n_vocab": data.corpus.vocab_size, "sha256": "not yet learnt"}
        )
        initial.check_shape(options.gpt)
    n_vocab = known["n_vocab"] if known else data.corpus.vocab_size
    check_vocabulary_size(n_vocab, options.gpt.vocab_size)
