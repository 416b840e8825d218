"""The option parser: jsonargparse with errors that say what to do."""

import difflib
import re
from argparse import SUPPRESS
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from slm.errors import UserError
from slm.model import SamplingOptions

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
_TEXT = ("data.tokenizer", "data.vocab_size", "data.text_column", "data.validation_share")
_TELLING = ("prompt", "prompt_file", "num_samples", "out", *SamplingOptions.__dataclass_fields__)
HELP_SHOWS: dict[str, tuple[str, ...]] = {
    "fit": ("",),
    "validate": (*_DATA, "data.eval_batch_size", "json", "trainer.limit_val_batches", *_DEVICE),
    "test": (*_DATA, "data.eval_batch_size", "json", "trainer.limit_test_batches", *_DEVICE),
    "predict": (
        *_TELLING,
        "config",
        "ckpt_path",
        "trainer.accelerator",
        "trainer.default_root_dir",
    ),
    "prepare": (*_DATA, *_TEXT, "config", "print_config"),
}

HELP = {
    "--config": "A YAML file of options, or the name of one that comes with slm, such as small.",
    "--ckpt_path": "A checkpoint file, or `last` or `best` of the newest run.",
    "--seed_everything": "Seed of the weights, the batches and dropout.",
    "--trainer.default_root_dir": "The folder in which lightning_logs, where runs lie, is kept.",
    "--trainer.max_steps": "Optimizer steps to train; the learning rate is planned by it.",
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


class StoryParser(LightningArgumentParser):
    """Turns the parser's complaints into UserErrors."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Called by jsonargparse for everything that is wrong on the command line or in a file.

        Raises:
            UserError: Always.
        """
        verb = self.usage.split()[1] if self.usage else (self._verb(message) or "fit")
        refused = re.search(r"does not accept option '([\w.]+)'", message)
        if unknown := refused or re.search(r"unrecognized arguments: (.*)", message):
            word = ("--" if refused else "") + unknown[1].split()[0].split("=")[0]
            if not word.startswith("-"):
                raise UserError(
                    f"a word that belongs to no option: {word}",
                    f"options of `slm {verb}`, each with its value",
                    f'--prompt "{word}"' if verb == "predict" else f"slm {verb} --help lists them",
                )
            close = difflib.get_close_matches(word, self.option_names(), n=1, cutoff=0.5)
            raise UserError(
                f"there is no option {word}",
                f"an option of `slm {verb}`",
                (f"{close[0]}, perhaps? " if close else "") + f"slm {verb} --help lists them",
            )
        text = " ".join(message.split())
        key = re.search(r'Parser key "([^"]+)": ?(.*)', text)
        if key and (value := re.search(r"Expected an? (.*?)\. Got value: (.*)", key[2])):
            raise UserError(
                f"--{key[1]} is {value[2]}",
                re.sub(r"<class '(\w+)'>", r"\1", value[1].replace("typing.", "")),
                f"slm {verb} --help explains the option",
            )
        raise UserError(
            f"the options cannot be understood: {text}",
            "options and config files that fit together",
            f"slm {verb} --help lists the options and their types",
        )

    @staticmethod
    def _verb(message: str) -> str | None:
        """The verb that a message of the main parser is about."""
        found = re.search(r"[Ss]ubcommand '(\w+)'", message)
        return found[1] if found else None

    def option_names(self) -> list[str]:
        """Every option string that this parser or its subcommand's knows."""
        names: list[str] = []
        for action in self._actions:
            names += [name for name in action.option_strings if name.startswith("--")]
            for parser in (action.choices if isinstance(action.choices, dict) else {}).values():
                names += parser.option_names()
        return names
