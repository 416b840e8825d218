"""The options of the verbs that build a Trainer, and their help."""

import re
from argparse import SUPPRESS
from dataclasses import dataclass

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from slm.commands.parsing.errors import ParsingErrors
from slm.data.datamodule import StoryData
from slm.training.checkpoint_io import OnFailure
from slm.training.module import StoryModel
from slm.training.precision import Precision

_MEASURE = (
    "config", "print_config", "ckpt_path", "json", "data.source", "data.root",
    "data.eval_batch_size", "trainer.accelerator", "trainer.devices", "trainer.precision",
    "trainer.default_root_dir",
)  # fmt: skip
HELP_SHOWS = {
    "validate": (*_MEASURE, "trainer.limit_val_batches"),
    "test": (*_MEASURE, "trainer.limit_test_batches"),
}
"""Options and sections that the help of a verb shows; that of `fit` shows all."""

HELP = {
    "--config": "A YAML file of options, or the name of one that comes with slm, such as small.",
    "--ckpt_path": "A checkpoint file, or `last` or `best` of the newest run (validate and test "
    "also take a run).",
    "--seed_everything": "Seed of the weights, the batches and dropout.",
    "--trainer.default_root_dir": "The folder that contains lightning_logs, the folder of runs.",
    "--trainer.max_steps": "Optimizer steps to train; the learning-rate schedule ends there. "
    "--budget replaces it.",
}
"""Help in place of Lightning's, where that says too little or something else."""

TITLES = {
    "Customize every aspect": "Lightning's Trainer",
    "Run": "Checkpoint",
    "Perform": "Checkpoint",
}
"""Titles in place of the first lines of Lightning's docstrings, by their beginnings."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run.

    Every verb understands every config, so that one file serves all of them; the help of a verb
    shows what matters to it.
    """

    val_interval: int = 500
    """Optimizer steps between two validations; the last step is always validated."""
    save_interval: int = 500
    """Optimizer steps between two writes of last.ckpt."""
    budget: str | None = None
    """Time to train for, such as 20m or 1h30m, in place of trainer.max_steps: a short measurement
    plans micro-batch, accumulation, precision and compile, and, if no config is named, the model's
    size; the learning-rate schedule ends with the budget."""
    on_save_error: OnFailure = "stop"
    """Whether training stops when a checkpoint cannot be written, for example to a full disk, or
    only warns; the earlier checkpoint is kept in both cases."""
    report: bool = True
    """Whether fit ends by writing report.html into the run's folder."""
    check_device: bool = True
    """Whether fit compares loss and gradients of a small batch on a GPU with the CPU's before it
    begins, and stops if they differ by more than rounding."""
    json: str | None = None
    """Also write the metrics to a JSON file."""


class StoryParser(ParsingErrors, LightningArgumentParser):
    """LightningCLI's parser, with clear errors."""


def add_core_options(parser: LightningArgumentParser) -> None:
    """Adds the model's, the data's and the Trainer's options, in this order."""
    parser.add_lightning_class_args(StoryModel, "model")
    parser.add_lightning_class_args(StoryData, "data")
    parser.add_class_arguments(
        Trainer,
        "trainer",
        instantiate=False,
        fail_untyped=False,
        sub_configs=True,
        skip={"precision"},
    )
    parser.add_argument(
        "--trainer.precision",
        type=Precision,
        default="auto",
        help="Number format; `auto` takes bf16-mixed where the device multiplies it natively, else "
        "16-mixed on CUDA and 32-true elsewhere.",
    )


def tidy_help(parser: LightningArgumentParser, verb: str) -> None:
    """Makes a parser's help shorter, and readable where Lightning's docstrings contain markup.

    The parser still understands the options that its help does not show.
    """
    for action in parser._actions:
        name = next((name for name in action.option_strings if name.startswith("--")), "")
        shown = verb == "fit" or any(
            f"{name}.".startswith(f"--{option}.") for option in HELP_SHOWS[verb]
        )
        if name != "--help" and (not shown or ".help" in name):
            action.help = SUPPRESS
        elif action.help:
            action.help = HELP.get(name, re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", action.help))
    for group in parser._action_groups:
        for beginning, title in TITLES.items():
            if (group.title or "").startswith(beginning):
                group.title = title
