"""The option parser of the verbs that build a Trainer, and what their help shows."""

import re
from argparse import SUPPRESS

from lightning.pytorch.cli import LightningArgumentParser

from slm.commands.parsing import ParsingErrors

# What the help of a verb shows: options, and sections of them. With a checkpoint, the data's and
# the model's defaults are the checkpoint's.
_DEVICE = (
    "config",
    "print_config",
    "ckpt_path",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.default_root_dir",
)
_DATA = ("data.source", "data.root")
HELP_SHOWS: dict[str, tuple[str, ...]] = {
    "fit": ("",),
    "validate": (*_DATA, "data.eval_batch_size", "json", "trainer.limit_val_batches", *_DEVICE),
    "test": (*_DATA, "data.eval_batch_size", "json", "trainer.limit_test_batches", *_DEVICE),
}

HELP = {
    "--config": "A YAML file of options, or the name of one that comes with slm, such as small.",
    "--ckpt_path": "A checkpoint file, or `last` or `best` of the newest run (to measure, a "
    "run, too).",
    "--seed_everything": "Seed of the weights, the batches and dropout.",
    "--trainer.default_root_dir": "The folder in which lightning_logs, where runs lie, is kept.",
    "--trainer.max_steps": "Optimizer steps to train; the learning rate is planned by it. "
    "--budget takes its place.",
}
"""Words in place of Lightning's, where they say too little or another thing."""

TITLES = {
    "Customize every aspect": "Lightning's Trainer",
    "Run": "Checkpoint",
    "Perform": "Checkpoint",
}
"""Titles in place of the first lines of Lightning's docstrings, by their beginnings."""


def tidy_help(parser: LightningArgumentParser, shown: tuple[str, ...]) -> None:
    """Makes a parser's help shorter, and readable where Lightning's docstrings hold markup.

    Args:
        parser: Changed in place. It goes on to understand the options it does not show.
        shown: Beginnings of the names of the options to show.
    """
    for action in parser._actions:
        name = next((name for name in action.option_strings if name.startswith("--")), "")
        bare = name.removeprefix("--")
        seen = any(start in ("", bare) or bare.startswith(f"{start}.") for start in shown)
        if name != "--help" and (not seen or ".help" in name):
            action.help = SUPPRESS
        elif action.help:
            action.help = HELP.get(name, re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", action.help))
    for group in parser._action_groups:
        for beginning, title in TITLES.items():
            if (group.title or "").startswith(beginning):
                group.title = title


class StoryParser(ParsingErrors, LightningArgumentParser):
    """LightningCLI's parser, with clear complaints."""
