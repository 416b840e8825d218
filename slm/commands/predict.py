"""The verb `predict`: tells stories with a trained model, without a Trainer."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from slm.commands.complaints import (
    QuickParser,
    os_errors_explained,
    out_of_memory_explained,
)
from slm.commands.resolve import resolve_checkpoint
from slm.commands.stories import JsonLines, Sink, Terminal, read_prompts, story_requests
from slm.errors import UserError
from slm.model import SamplingOptions
from slm.model.weights import (
    Device,
    Weights,
    can_compile,
    fast_weights,
    resolve_device,
    resolve_weights,
)
from slm.training.storyteller import Storyteller
from slm.verbs import VERBS

# Sections and options of a config for training, which decide nothing here.
_TRAINING = {"model", "data", "seed_everything", "val_interval", "save_interval", "budget"}
_TRAINER = ("accelerator", "default_root_dir")
_ROWS = {"cpu": 16, "mps": 64, "cuda": 256}
"""Stories side by side."""


@os_errors_explained()
def run_predict(words: Sequence[str]) -> int:
    """Tells the stories that a command line asks for.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    parser = _make_parser()
    words, checkpoint, _ = resolve_checkpoint("predict", _with_config(parser, words))
    options = parser.parse_args(words)
    assert checkpoint is not None  # parse_args has printed the help and left, otherwise
    sampling = _sampling(options)
    device, weights = _arithmetic(options)
    teller = Storyteller(
        fast_weights(checkpoint.make_model(), weights, device), checkpoint.make_tokenizer()
    )
    requests = story_requests(_prompts(options, sampling, teller), sampling)
    sink: Sink = Terminal(requests)
    if options.out:
        facts = {
            "checkpoint": str(checkpoint.path.resolve()),
            "step": checkpoint.step,
            "fingerprint": checkpoint.fingerprint(),
            "weights": weights,
            "device": device,
            "compile": options.compile,
        }
        sink = writer = JsonLines(Path(options.out), requests, facts)
        requests = requests[writer.done :]
    rows = min(options.batch_size or _ROWS[device], max(1, len(requests)))
    alike = replace(sampling, num_samples=1)
    finished = False
    try:
        compiling = _compiling_explained() if options.compile else nullcontext()
        with compiling, out_of_memory_explained("--batch_size 1, or a larger number that fits"):
            for story, piece in teller.tell_all(requests, alike, rows, options.compile):
                sink.take(story, piece)
        finished = True
    finally:
        sink.close(finished)
    return 0


@contextmanager
def _compiling_explained() -> Iterator[None]:
    """Turns what torch.compile stumbles over into a UserError."""
    from torch._dynamo.exc import TorchDynamoException  # a second that only compiling may cost

    try:
        yield
    except TorchDynamoException as error:
        raise UserError(
            "torch.compile does not work on this machine "
            f"({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]})",
            "a C++ compiler, or on a GPU Triton",
            "leave out --compile",
        ) from error


def _arithmetic(options: Any) -> tuple[Device, Literal["fp32", "bf16", "int8"]]:
    """The device and the weights that the options mean.

    Raises:
        UserError: There is no such device, or they do not go together.
    """
    try:
        device = resolve_device(options.trainer.accelerator)
        weights = resolve_weights(options.weights, device)
    except ValueError as error:
        raise UserError.from_value_error(error, "slm predict --help explains it") from error
    if options.compile and not can_compile(weights, device):
        raise UserError(
            f"--compile true with weights {weights} on {device}",
            "int8 on a CPU, or a CUDA device",
            "--weights int8, or without --compile",
        )
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch_size {options.batch_size}", "1 or more", "--batch_size 16")
    return device, weights


def _prompts(options: Any, sampling: SamplingOptions, teller: Storyteller) -> list[str]:
    """The prompts of the command line and of the file, or the classic one.

    Raises:
        UserError: The file cannot be read, or a prompt does not fit the context it has to fit.
    """
    prompts = list(options.prompt or [])
    if options.prompt_file:
        prompts += read_prompts(Path(options.prompt_file))
    context = teller.model.config.block_size
    for prompt in prompts if sampling.past_context == "stop" else []:
        if (length := 1 + len(teller.tokenizer.encode(prompt))) > context:
            raise UserError(
                f"--past_context stop, and a prompt of {length} tokens: {prompt[:40]!r} …",
                f"at most {context}: the model's context",
                "a shorter prompt, or --past_context rebuild, which reads its end",
            )
    return prompts or ["Once upon a time"]


def _make_parser() -> QuickParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = QuickParser(
        prog="slm",
        usage='slm predict [--ckpt_path FILE] [--prompt "Once upon a time"] [--option value ...]',
        description=f"{VERBS['predict'][0].upper()}{VERBS['predict'][1:]}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="A checkpoint file, or `last` or `best` of the newest run, which is also the default.",
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
        type=Weights,
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
        help=f"Stories told side by side at most; null takes {_ROWS['cpu']} on a CPU, "
        f"{_ROWS['cuda']} on a CUDA GPU. On a CPU no story depends on it.",
    )
    parser.add_argument(
        "--config",
        type=str | None,
        default=None,
        help="A YAML file of these options; those for training are passed over.",
    )
    parser.add_argument(
        "--trainer.accelerator",
        type=Literal["auto", "cpu", "gpu", "cuda", "mps"],
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


def _sampling(options: Any) -> SamplingOptions:
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


def _with_config(parser: QuickParser, words: Sequence[str]) -> list[str]:
    """The command line, with what its configs say of telling written out in front."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            configs += _config_words(parser, Path(value if equals else next(rest, "")))
        else:
            others.append(word)
    return [*configs, *others]


def _config_words(parser: QuickParser, path: Path) -> list[str]:
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
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, values in config.items()
        if name in known and values is not None
        for value in (values if isinstance(values, list) else [values])
    ]
