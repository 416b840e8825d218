"""The options of the verbs that build a Trainer, and their help."""

import re
from argparse import SUPPRESS

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from slm.commands.parsing.errors import ParsingErrors
from slm.data.datamodule import StoryData
from slm.training.checkpoint_io import OnFailure
from slm.training.module import StoryModel
from slm.training.precision import Precision

# What the help of a verb shows: options and sections. With a checkpoint, the data's and the model's
# defaults are the checkpoint's.
_DEVICE = (
    "config",
    "print_config",
    "ckpt_path",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.default_root_dir",
)
_MEASURE = ("data.source", "data.root", "data.eval_batch_size", "json", *_DEVICE)
HELP_SHOWS: dict[str, tuple[str, ...]] = {
    "fit": ("",),
    "validate": ("trainer.limit_val_batches", *_MEASURE),
    "test": ("trainer.limit_test_batches", *_MEASURE),
}

HELP = {
    "--config": "A YAML file of options, or the name of one that comes with slm, such as small.",
    "--ckpt_path": "A checkpoint file, or `last` or `best` of the newest run (validate and test "
    "also take a run).",
    "--seed_everything": "Seed of the weights, the batches and dropout.",
    "--trainer.default_root_dir": "The folder that contains lightning_logs, the folder of runs.",
    "--trainer.max_steps": "Optimizer steps to train; the learning rate is planned by it. "
    "--budget replaces it.",
}
"""Help in place of Lightning's, where that says too little or something else."""

TITLES = {
    "Customize every aspect": "Lightning's Trainer",
    "Run": "Checkpoint",
    "Perform": "Checkpoint",
}
"""Titles in place of the first lines of Lightning's docstrings, by their beginnings."""


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


def add_run_options(parser: LightningArgumentParser, verb: str) -> None:
    """Adds the options of a run.

    Every verb understands every config, so that one file serves all of them; the help of a verb
    shows what matters to it.
    """
    parser.add_argument(
        "--val_interval",
        type=int,
        default=500,
        help="Optimizer steps between two validations; the last step is always validated.",
    )
    parser.add_argument(
        "--save_interval",
        type=int,
        default=500,
        help="Optimizer steps between two writes of last.ckpt.",
    )
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="Time to train for, such as 20m or 1h30m, in place of trainer.max_steps: a short "
        "measurement plans micro-batch, accumulation, precision and compile, and, if no config is "
        "named, the model's size; the learning rate ends when the time does.",
    )
    parser.add_argument(
        "--on_save_error",
        type=OnFailure,
        default="stop",
        help="Whether training stops when a checkpoint cannot be written, for example to a full "
        "disk, or only warns; the earlier checkpoint is kept in both cases.",
    )
    parser.add_argument(
        "--report",
        type=bool,
        default=True,
        help="Whether fit ends by writing report.html into the run's folder.",
    )
    parser.add_argument(
        "--check_device",
        type=bool,
        default=True,
        help="Whether fit compares loss and gradients of a small batch on a GPU with the CPU's "
        "before it begins, and stops if they differ by more than rounding.",
    )
    if verb != "fit":
        parser.add_argument(
            "--json", type=str | None, default=None, help="Also write the figures to a file."
        )
    parser.link_arguments("model.gpt.block_size", "data.block_size")
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)


def tidy_help(parser: LightningArgumentParser, verb: str) -> None:
    """Makes a parser's help shorter, and readable where Lightning's docstrings contain markup.

    Args:
        parser: Changed in place. It still understands the options that it does not show.
        verb: Its verb.
    """
    for action in parser._actions:
        name = next((name for name in action.option_strings if name.startswith("--")), "")
        bare = name.removeprefix("--")
        shown = any(
            start in ("", bare) or bare.startswith(f"{start}.") for start in HELP_SHOWS[verb]
        )
        if name != "--help" and (not shown or ".help" in name):
            action.help = SUPPRESS
        elif action.help:
            action.help = HELP.get(name, re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", action.help))
    for group in parser._action_groups:
        for beginning, title in TITLES.items():
            if (group.title or "").startswith(beginning):
                group.title = title
