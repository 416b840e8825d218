"""The options of `predict`, on the command line and in files."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from slm.commands.parsing import QuickParser, quick_parser
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.quantization import Quantization
from slm.hardware import Accelerator

# Sections and options of a config for training, which decide nothing here.
_TRAINING = {
    "model",
    "data",
    "seed_everything",
    "val_interval",
    "save_interval",
    "budget",
    "report",
    "on_save_error",
    "check_device",
}
_TRAINER = ("accelerator", "default_root_dir")
ROWS = {"cpu": 16, "mps": 64, "cuda": 256}
"""Stories side by side."""


def make_parser() -> QuickParser:
    """The parser of everything that `predict` understands."""
    parser = quick_parser(
        "predict",
        'slm predict [--ckpt_path FILE] [--prompt "Once upon a time"] [--option value ...]',
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="A checkpoint file, a run, or `last` or `best` of the newest run, which is also the "
        "default.",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        type=str,
        help="How the story begins; give it several times for several stories "
        "or none for the classic one, Once upon a time.",
    )
    parser.add_argument(
        "--prompt_file", type=str | None, default=None, help="A file with a prompt on each line."
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Write the stories to this new file, one JSON object per line. A command that was "
        "interrupted goes on where it was when it is repeated.",
    )
    # Added up whenever the stories go to a file; the terminal has no place for them.
    parser.add_class_arguments(SamplingOptions, skip={"stop", "log_probs"})
    parser.add_argument(
        "--stop",
        action="append",
        type=str,
        help="A text in front of which the story ends; may be given several times. End-of-text "
        "ends it anyway.",
    )
    parser.add_argument(
        "--weights",
        type=Quantization,
        default="auto",
        help="Number format of the weights: fp32 as trained, bf16 faster, int8 the fastest for a "
        "story or two at a time, on CPUs; `auto` takes bf16 where the device multiplies it "
        "natively, else fp32.",
    )
    parser.add_argument(
        "--compile",
        type=bool,
        default=False,
        help="Whether to tell through torch.compile; takes some ten seconds before the first "
        "story, pays for many on a GPU, and with --weights int8.",
    )
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help=f"Stories told side by side at most; null takes {ROWS['cpu']} on a CPU, "
        f"{ROWS['cuda']} on a CUDA GPU. On a CPU no story depends on it.",
    )
    parser.add_argument(
        "--config",
        type=str | None,
        default=None,
        help="A YAML file of these options; those for training are passed over.",
    )
    parser.add_argument(
        "--trainer.accelerator",
        type=Accelerator,
        default="auto",
        help="The device; `auto` takes the best there is.",
    )
    parser.add_argument(
        "--trainer.default_root_dir",
        type=str | None,
        default=None,
        help="The folder in which lightning_logs, where runs lie, is kept.",
    )
    return parser


def sampling_options(options: Any) -> SamplingOptions:
    """The sampling options of a command line.

    Raises:
        UserError: One is out of range.
    """
    given: dict[str, Any] = {
        field.name: getattr(options, field.name, None) for field in fields(SamplingOptions)
    }
    # "\n" as it is typed in a shell, where it is two characters.
    given["stop"] = tuple(stop.replace("\\n", "\n") for stop in options.stop or ())
    given["log_probs"] = options.out is not None
    try:
        return SamplingOptions(**given)
    except ValueError as error:
        raise UserError.from_value_error(error, "slm predict --help explains it") from error


def config_words(parser: QuickParser, path: Path) -> list[str]:
    """What a config file says of telling, as words of a command line.

    Raises:
        UserError: The file cannot be read or understood.
    """
    try:
        config = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        trainer = dict(config.pop("trainer", None) or {})
        config |= {f"trainer.{name}": trainer[name] for name in _TRAINER if name in trainer}
        known = {name.removeprefix("--") for name in parser.option_names()} - {"config", "help"}
        if unknown := set(config) - known - _TRAINING:
            raise ValueError(f"there is no option {', '.join(map(str, unknown))}")
    except (OSError, ValueError, yaml.YAMLError, TypeError) as error:
        raise UserError(
            f"--config {path} cannot be understood: {' '.join(str(error).split())}",
            "a YAML file with options of `slm predict`, or a config for training",
            "repair the file, or leave it out: a checkpoint is all that predict needs",
        ) from error
    defaults = parser.get_defaults()
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, values in config.items()
        if name in known and not (values is None and defaults[name] is None)
        for value in (values if isinstance(values, list) else [values])
    ]
