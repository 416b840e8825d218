"""`bench train`: how fast a model is trained."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from slm.bench.matrix_rate import datasheet_rate
from slm.bench.training_speed import Rate, measure_loop, measure_training
from slm.bench.variants import Training
from slm.commands.configs import find_configs, model_of_config, read_config
from slm.commands.parsing import QuickParser, quick_parser
from slm.errors import UserError
from slm.hardware import Accelerator, describe_device, describe_machine, find_device
from slm.model import GPT, GPTConfig
from slm.model.flops import training_flops_per_token
from slm.training.optimization import OptimizerOptions
from slm.training.precision import Precision, resolve_precision

_NANOGPT = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
"""The fields of `GPTConfig` that nanoGPT's has, too."""

_USAGE = "slm bench train [--config FILE] [--option value ...]"


def bench_train(words: Sequence[str]) -> dict[str, Any]:
    """Measures how fast a model is trained, and prints a table.

    Args:
        words: The command line behind `bench train`.

    Returns:
        What was measured, for a file.

    Raises:
        UserError: The input has to change.
    """
    options = _make_parser().parse_args(list(words))
    trainings = _trainings(options)
    (first, *_) = trainings
    rates: list[Rate] = []
    measured: list[float] = []
    for training in trainings:
        arms: dict[str, tuple[str, Training, Path | None]] = {}
        rows = f", {training.batch_size} windows" if len(trainings) > 1 else ""
        arms[f"slm Trainer{rows}"] = "trainer", training, None
        arms[f"slm bare loop{rows}"] = "bare", training, None
        if options.vs:
            place = Path(options.vs)
            for name, other in _theirs(training).items():
                arms[f"{name}{rows}"] = "nanogpt", other, place
        found, rate_of_matrices = measure_training(arms, options.repeats, options.steps, _say)
        rates += found
        measured.append(rate_of_matrices)
    if not rates:
        raise UserError(
            "nothing could be measured",
            "a way of training that works on this machine; the lines above say why none did",
            "a smaller --batch_size, or --compile false",
        )
    possible = statistics.median(measured)
    loop = None
    if options.loop:
        _say("Measuring  the loop around a step")
        loop = measure_loop(first, options.repeats)
    facts = {
        "machine": describe_machine(first.device),
        "training": asdict(first),
        "flops_per_token": training_flops_per_token(first.gpt),
        "matrix_flops_per_second": possible,
        "repeats": options.repeats,
        "rates": [asdict(rate) | {"median_tokens_per_second": rate.median} for rate in rates],
        "loop_seconds": loop,
    }
    with torch.device("meta"):
        counts = GPT(first.gpt).parameter_counts()
    print(
        f"Model      {counts}\n"
        f"Machine    {facts['machine']}\n"
        f"Step       {_describe(first)}; medians of {options.repeats} turns\n"
        f"Matrices   {possible / 1e12:.3g} TFLOP/s in products of large ones; a token takes "
        f"{training_flops_per_token(first.gpt) / 1e6:.0f} MFLOP\n",
        *_table(rates),
        "",
        *_parts(rates, loop),
        sep="\n",
    )
    return facts


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _make_parser() -> QuickParser:
    parser = quick_parser("bench", _USAGE)
    for name, kind, default, words in (
        ("config", str, "configs/small.yaml", "A config of `fit`; the options below win over it."),
        ("batch_size", list[int] | int | None, None, "Windows per step, or a list to compare."),
        ("block_size", int | None, None, "Context length."),
        ("precision", Precision | None, None, "Number format."),
        ("compile", bool | None, None, "Whether to train through torch.compile."),
        ("dropout", float | None, None, "Probability of dropping an activation."),
        ("grad_checkpointing", bool | None, None, "Whether to compute blocks twice."),
        ("repeats", int, 5, "Rounds, of which the median counts."),
        ("steps", int | None, None, "Steps of a turn; null: about two seconds."),
        ("loop", bool, True, "Whether to measure the loop with nothing to compute, too."),
        (
            "vs",
            str | None,
            None,
            "The model.py of a nanoGPT of your own: trained in its bare loop, compiled and in "
            "float32, in turns with slm.",
        ),
        ("json", str | None, None, "Also write the figures to a file."),
        ("trainer.accelerator", Accelerator, "auto", "Device."),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=words)
    return parser


def _trainings(options: Any) -> list[Training]:
    """What to measure: the config's training with the options' changes, for each batch size.

    Raises:
        UserError: An option is out of range, or the config or nanoGPT cannot be read.
    """
    for name in ("repeats", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}", "1 or more", f"--{name} 3")
    if options.vs and not Path(options.vs).is_file():
        raise UserError(
            f"--vs {options.vs} does not exist",
            "the file model.py of a nanoGPT",
            "git clone https://github.com/karpathy/nanoGPT, and --vs nanoGPT/model.py",
        )
    if options.vs and options.grad_checkpointing:
        raise UserError(
            "--vs with --grad_checkpointing true",
            "the same training on both sides; nanoGPT keeps everything",
            "leave one of them out",
        )
    (_, config_file) = find_configs(["--config", options.config])
    config = read_config(Path(config_file))
    gpt = model_of_config(Path(config_file))
    model, data, trainer = (config.get(name) or {} for name in ("model", "data", "trainer"))
    try:
        shape = {"block_size": options.block_size, "dropout": options.dropout}
        gpt = replace(gpt, **{name: value for name, value in shape.items() if value is not None})
        device = find_device(options.trainer.accelerator).type
        optimizer = OptimizerOptions(**model.get("optimizer", {}))
    except TypeError as error:
        raise UserError(
            f"model.optimizer of {options.config}: {error}",
            "the optimizer's options",
            "slm fit --help lists them",
        ) from error
    except ValueError as error:
        raise UserError.from_value_error(error, "slm bench train --help explains it") from error
    if options.vs and gpt != GPTConfig(**{name: getattr(gpt, name) for name in _NANOGPT}):
        raise UserError(
            f"--vs with the model of {options.config}",
            "the classic model, which is all that nanoGPT has",
            "--config small",
        )
    sizes = data.get("batch_size", 32) if options.batch_size is None else options.batch_size
    sizes = sizes if isinstance(sizes, list) else [sizes]
    if not sizes or min(sizes) < 1:
        raise UserError(f"--batch_size {options.batch_size}", "1 or more", "--batch_size 32")

    def chosen(name: str, default: Any) -> Any:
        given = getattr(options, name)
        return default if given is None else given

    precision = chosen("precision", trainer.get("precision", "auto"))
    return [
        Training(
            gpt,
            optimizer,
            batch_size=size,
            precision=resolve_precision(precision, device),
            compile=chosen("compile", model.get("compile", False)),
            grad_checkpointing=chosen("grad_checkpointing", model.get("grad_checkpointing", False)),
            device=device,
            gradient_clip_val=trainer.get("gradient_clip_val", 1.0),
            log_interval=trainer.get("log_every_n_steps", 10),
        )
        for size in sizes
    ]


def _theirs(training: Training) -> dict[str, Training]:
    """NanoGPT's ways of training the same: its best, and on a CPU its own recipe for one."""
    ways = {"nanoGPT" + (" compiled" if training.compile else ""): training}
    ways = {f"{name} {training.precision}": way for name, way in ways.items()}
    if training.device == "cpu":
        ways["nanoGPT float32, eager"] = replace(training, precision="32-true", compile=False)
    return ways


def _describe(training: Training) -> str:
    parts = [
        f"{training.batch_size} x {training.gpt.block_size} tokens",
        training.precision,
        "compiled" if training.compile else "eager",
        f"dropout {training.gpt.dropout}",
        f"vocabulary {training.gpt.vocab_size:,}",
    ]
    return ", ".join(parts) + (", blocks computed twice" * training.grad_checkpointing)


def _table(rates: Sequence[Rate]) -> list[str]:
    width = max(len(rate.arm) for rate in rates)
    theirs = [rate for rate in rates if rate.arm.startswith("nanoGPT")]
    rival = max(theirs, key=lambda rate: rate.median) if theirs else rates[-1]
    sheet = None
    if rates[0].training.device == "cuda" and rates[0].training.precision.endswith("16-mixed"):
        sheet = datasheet_rate(describe_device("cuda"))
    lines = [
        f"{'':{width}}  tokens/s   slowest to fastest  times {rival.arm:<24}  "
        f"share of matrix rate{'  of datasheet' if sheet else ''}  peak memory"
    ]
    for rate in rates:
        median, low, high = rate.times(rival)
        times = "1" if rate is rival else f"{median:.2f} ({low:.2f} to {high:.2f})"
        share = sorted(rate.utilization)[len(rate.utilization) // 2]
        of_sheet = ""
        if sheet:
            of_sheet = (
                f"  {rate.median * training_flops_per_token(rate.training.gpt) / sheet:>12.0%}"
            )
        lines.append(
            f"{rate.arm:{width}}  {rate.median:>8,.0f}  {min(rate.tokens_per_second):>9,.0f} to "
            f"{max(rate.tokens_per_second):<8,.0f} {times:<30}  {share:>20.0%}{of_sheet}  "
            f"{rate.peak_bytes / 1e9:>8.2f} GB"
        )
    return lines


def _parts(rates: Sequence[Rate], loop: dict[str, float] | None) -> list[str]:
    """Where a step of the first batch size goes."""
    lines = []
    bare = next((rate for rate in rates if rate.parts), None)
    trainer = next((rate for rate in rates if rate.arm.startswith("slm Trainer")), None)
    if bare and bare.parts:
        said = ", ".join(f"{name} {1e3 * s:,.1f} ms" for name, s in bare.parts.items())
        lines.append(f"Parts      {said} (the loss goes backward within the forward pass)")
    if bare and trainer:
        share = trainer.times(bare)[0]
        extra = 1e3 * (trainer.step_seconds - bare.step_seconds)
        lines.append(f"Trainer    {share:.1%} of the bare loop's tokens/s; {extra:+,.1f} ms a step")
    if loop:
        lines.append(
            f"Loop       with nothing to compute {1e3 * loop['loop']:.2f} ms a step, of which "
            f"Lightning alone {1e3 * loop['loop alone']:.2f} and our callbacks and curves "
            f"{1e3 * loop['callbacks']:.2f}"
        )
    return lines
