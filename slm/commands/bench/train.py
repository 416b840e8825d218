"""`bench train`: how fast a model is trained."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slm.bench.matrix_rate import datasheet_rate
from slm.bench.training_speed import Rate, measure_loop, measure_training
from slm.bench.variants import Training
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.configs import find_config, model_of_config, read_config
from slm.commands.parsing.device import AcceleratorOptions
from slm.commands.parsing.errors import output_path
from slm.commands.parsing.options import parse
from slm.errors import UserError, user_errors
from slm.files import json_text
from slm.hardware import describe_device, describe_machine
from slm.model import GPT, GPTConfig
from slm.model.flops import training_flops_per_token
from slm.training.optimization import OptimizerOptions
from slm.training.precision import Precision, resolve_precision

_NANOGPT = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
"""The fields of `GPTConfig` that nanoGPT's has, too."""


@dataclass(frozen=True)
class BenchTrainOptions:
    """The options of `bench train`."""

    config: str = "configs/small.yaml"
    """A config of `fit`; the options below override it."""
    batch_size: list[int] | int | None = None
    """Windows per step, or a list to compare."""
    block_size: int | None = None
    """Context length."""
    precision: Precision | None = None
    """Number format."""
    compile: bool | None = None
    """Whether to train through torch.compile."""
    dropout: float | None = None
    """Probability of dropping an activation."""
    grad_checkpointing: bool | None = None
    """Whether to use activation checkpointing."""
    repeats: int = 5
    """Rounds, of which the median counts."""
    steps: int | None = None
    """Steps of a round; null: about two seconds."""
    loop: bool = True
    """Whether to measure the loop with nothing to compute, too."""
    vs: str | None = None
    """The model.py of a nanoGPT of your own: trained in its bare loop, compiled and in float32, in
    rounds with slm."""
    json: str | None = None
    """Also write the measurements to a JSON file."""
    trainer: AcceleratorOptions = AcceleratorOptions()

    def __post_init__(self) -> None:
        for name in ("repeats", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}; 1 or more")
        if self.vs and self.grad_checkpointing:
            raise ValueError(
                "--vs with --grad_checkpointing true; the same training on both sides: nanoGPT "
                "keeps all activations"
            )


def run(arguments: Arguments) -> int:
    """Measures how fast a model is trained, and prints a table."""
    usage = "slm bench train [--config FILE] [--option value ...]"
    options = parse("bench", BenchTrainOptions, arguments, usage)
    out = output_path("--json", options.json)
    facts = bench_train(options)
    if out:
        out.write_text(json_text(facts), encoding="utf-8")
    return 0


def bench_train(options: BenchTrainOptions) -> dict[str, Any]:
    """Measures each batch size, and prints the table; returns what was measured."""
    trainings = _trainings(options)
    first = trainings[0]
    rates: list[Rate] = []
    matrix_rates: list[float] = []
    for training in trainings:
        suffix = f", {training.batch_size} windows" if len(trainings) > 1 else ""
        variants: dict[str, tuple[str, Training, Path | None]] = {
            f"slm Trainer{suffix}": ("trainer", training, None),
            f"slm bare loop{suffix}": ("bare", training, None),
        }
        if options.vs:
            for name, other in _nanogpt_variants(training).items():
                variants[f"{name}{suffix}"] = "nanogpt", other, Path(options.vs)
        found, matrix_rate = measure_training(variants, options.repeats, options.steps, _print)
        rates += found
        matrix_rates.append(matrix_rate)
    if not rates:
        raise UserError(
            "nothing could be measured",
            "a way of training that works on this machine; the lines above say why none did",
            "a smaller --batch_size, or --compile false",
        )
    loop = None
    if options.loop:
        _print("Measuring  the loop around a step")
        loop = measure_loop(first, options.repeats)
    possible = statistics.median(matrix_rates)
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
        f"Step       {_describe(first)}; medians of {options.repeats} rounds\n"
        f"Matrices   {possible / 1e12:.3g} TFLOP/s in products of large ones; a token takes "
        f"{training_flops_per_token(first.gpt) / 1e6:.0f} MFLOP\n",
        *_table(rates),
        "",
        *_parts(rates, loop),
        sep="\n",
    )
    return facts


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _trainings(options: BenchTrainOptions) -> list[Training]:
    """What to measure: the config's training with the options' changes, for each batch size."""
    if options.vs and not Path(options.vs).is_file():
        raise UserError(
            f"--vs {options.vs} does not exist",
            "the file model.py of a nanoGPT",
            "git clone https://github.com/karpathy/nanoGPT, and --vs nanoGPT/model.py",
        )
    path = find_config(options.config)
    config, gpt = read_config(path), model_of_config(path)
    model, data, trainer = (config.get(name) or {} for name in ("model", "data", "trainer"))
    device = options.trainer.device.type
    shape: dict[str, Any] = {"block_size": options.block_size, "dropout": options.dropout}
    try:
        with user_errors("slm bench train --help explains it"):
            gpt = replace(gpt, **{key: value for key, value in shape.items() if value is not None})
            optimizer = OptimizerOptions(**model.get("optimizer", {}))
    except TypeError as error:
        raise UserError(
            f"model.optimizer of {options.config}: {error}",
            "the optimizer's options",
            "slm fit --help lists them",
        ) from error
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


def _nanogpt_variants(training: Training) -> dict[str, Training]:
    """How nanoGPT trains the same: its best way, and on a CPU also its own recipe for one."""
    compiled = " compiled" if training.compile else ""
    variants = {f"nanoGPT{compiled} {training.precision}": training}
    if training.device == "cpu":
        variants["nanoGPT float32, eager"] = replace(training, precision="32-true", compile=False)
    return variants


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
    nanogpt = [rate for rate in rates if rate.arm.startswith("nanoGPT")]
    baseline = max(nanogpt, key=lambda rate: rate.median) if nanogpt else rates[-1]
    sheet = None
    if rates[0].training.device == "cuda" and rates[0].training.precision.endswith("16-mixed"):
        sheet = datasheet_rate(describe_device("cuda"))
    lines = [
        f"{'':{width}}  tokens/s   slowest to fastest  times {baseline.arm:<24}  "
        f"share of matrix rate (MFU){'  of datasheet' if sheet else ''}  peak memory"
    ]
    for rate in rates:
        median, low, high = rate.times(baseline)
        times = "1" if rate is baseline else f"{median:.2f} ({low:.2f} to {high:.2f})"
        share = sorted(rate.utilization)[len(rate.utilization) // 2]
        flops = rate.median * training_flops_per_token(rate.training.gpt)
        of_sheet = f"  {flops / sheet:>12.0%}" if sheet else ""
        lines.append(
            f"{rate.arm:{width}}  {rate.median:>8,.0f}  {min(rate.tokens_per_second):>9,.0f} to "
            f"{max(rate.tokens_per_second):<8,.0f} {times:<30}  {share:>20.0%}{of_sheet}  "
            f"{rate.peak_bytes / 1e9:>8.2f} GB"
        )
    return lines


def _parts(rates: Sequence[Rate], loop: dict[str, float] | None) -> list[str]:
    """Where the time of a step goes, for the first batch size."""
    lines = []
    bare = next((rate for rate in rates if rate.parts), None)
    trainer = next((rate for rate in rates if rate.arm.startswith("slm Trainer")), None)
    if bare and bare.parts:
        parts = ", ".join(f"{name} {1e3 * s:,.1f} ms" for name, s in bare.parts.items())
        lines.append(f"Parts      {parts} (the loss's backward is part of the forward pass)")
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
