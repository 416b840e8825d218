"""What to train, and how, so that it is done in some time: the plan behind `fit --budget`."""

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from slm.errors import UserError
from slm.hardware import find_device
from slm.model import GPT, GPTConfig
from slm.model.gpt import ParameterCounts
from slm.training.callbacks.device_check import check_device
from slm.training.callbacks.time_budget import format_duration
from slm.training.optimization import OptimizerOptions
from slm.training.precision import resolve_precision
from slm.training.probe import Measurement, measure
from slm.training.scaling import expected_bits_per_byte

SIZES = (
    (2, 2, 128), (3, 2, 192), (4, 2, 224), (4, 4, 256), (5, 5, 320), (6, 6, 384), (8, 8, 512),
)  # fmt: skip
"""Layers, heads and width of the models to choose from."""

_BATCH = {"--data.batch_size", "--trainer.accumulate_grad_batches"}
_COMPILE_GAIN = 1.4  # what compiling usually brings; measured anew once the size is chosen
_WORTH_COMPILING = 60.0  # seconds; below, compiling takes longer than training
_PROBED_TOKENS = 2048  # in the steps that compare sizes
_VALIDATION_SHARE = 0.02  # of the time, for validations before the last one


@dataclass(frozen=True)
class Plan:
    """How a time is going to be used."""

    seconds: float
    gpt: GPTConfig
    precision: str
    compile: bool
    batch_size: int
    """Windows per micro-batch."""
    accumulate: int
    """Micro-batches per optimizer step."""
    validation_tokens: int
    """Tokens of the validation split."""
    measured: Measurement

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an optimizer step trains on."""
        return self.batch_size * self.accumulate * self.gpt.block_size

    @property
    def steps(self) -> int:
        """Optimizer steps expected to fit into the time."""
        return max(1, round(self.seconds / self.measured.step_seconds(self.accumulate)))

    @property
    def tokens(self) -> int:
        """Tokens expected to be trained on."""
        return self.steps * self.tokens_per_step

    @property
    def val_interval(self) -> int:
        """Steps between validations: nine at most, fewer where they would take too long."""
        seconds = self.validation_tokens / (3 * self.tokens / self.seconds)  # forward is a third
        count = min(9, int(_VALIDATION_SHARE * self.seconds / seconds))
        return self.steps // (count + 1) + 1 if count else 10 * self.steps

    def describe(self) -> str:
        """The plan, as printed before training."""
        gpt, tokens = self.gpt, self.tokens
        compiled = f"compiled in {self.measured.first_seconds:.0f} s" if self.compile else "eager"
        counts = _count(gpt)
        lines = [
            f"Budget     {format_duration(self.seconds)}, from the first step to the last",
            f"  model    {gpt.n_layer} layers, {gpt.n_head} heads, width {gpt.n_embd}, "
            f"context {gpt.block_size}: {counts}",
            f"  steps    about {self.steps:,} of {self.tokens_per_step:,} tokens: "
            f"{self.accumulate} x {self.batch_size} x {gpt.block_size}, {self.precision}, "
            f"{compiled}",
            f"  expected {tokens / 1e6:.2f} M tokens, {tokens / self.seconds:,.0f} tokens/s, "
            f"{self.measured.peak_bytes / 1e9:.1f} GB",
        ]
        if gpt.vocab_size == 4096:
            bits = expected_bits_per_byte(counts.tied, tokens)
            lines.append(
                f"           {bits:.2f} bits per byte, if these were TinyStories "
                "and none came twice"
            )
        return "\n".join(lines)


def _count(gpt: GPTConfig) -> ParameterCounts:
    """The sizes of a model, without making one: no memory, no random numbers."""
    with torch.device("meta"):
        return GPT(gpt).parameter_counts()


def make_plan(
    options: Any,
    seconds: float,
    *,
    validation_tokens: int,
    choose_size: bool,
    given: Collection[str] = (),
) -> Plan:
    """Measures what fits into a time.

    Args:
        options: The parsed options of `fit`.
        seconds: The time.
        validation_tokens: Tokens of the validation split.
        choose_size: Whether layers and width, and with them the tokens per step, are to be chosen;
            otherwise the options say them.
        given: Names of the options on the command line; those are kept.

    Raises:
        UserError: Not even one window fits into the memory, or the device fails its check.
        ValueError: The model's options are out of range.
    """
    gpt = GPTConfig(**options.model.gpt.as_dict())
    optimizer = OptimizerOptions(**options.model.optimizer.as_dict())
    device = find_device(options.trainer.accelerator)
    precision = resolve_precision(options.trainer.precision, device.type)
    print(
        f"Planning   {format_duration(seconds)} on {device.type}: measuring a few steps",
        file=sys.stderr,
    )
    if options.check_device and device.type != "cpu":
        with torch.random.fork_rng():
            check_device(GPT(gpt), device, precision)

    def probe(gpt: GPTConfig, windows: int, compile: bool = False) -> Measurement | None:
        return measure(
            gpt,
            optimizer,
            device,
            batch_size=windows,
            precision=precision,
            compile=compile,
        )

    windows = options.data.batch_size * options.trainer.accumulate_grad_batches
    if choose_size:
        gpt, rate = _best_size(gpt, probe, seconds)
        if not _BATCH & set(given):
            windows = max(1, _good_batch(rate * seconds) // gpt.block_size)
    batch_size, measured = _largest_that_fits(gpt, probe, windows)
    compile = False
    if "--model.compile" in given:
        compile = bool(options.model.compile)
        measured = (compile and _try_compiled(gpt, probe, batch_size)) or measured
    elif seconds >= _WORTH_COMPILING:
        compiled = _try_compiled(gpt, probe, batch_size)
        if compiled and compiled.micro_batch_seconds < 0.97 * measured.micro_batch_seconds:
            compile, measured = True, compiled
    return Plan(
        seconds,
        gpt,
        precision,
        compile,
        batch_size,
        -(-windows // batch_size),
        validation_tokens,
        measured,
    )


def _best_size(gpt: GPTConfig, probe: Any, seconds: float) -> tuple[GPTConfig, float]:
    """The size that is expected to predict best after the time, and its tokens per second."""
    best: tuple[float, GPTConfig, float] | None = None
    for n_layer, n_head, n_embd in SIZES:
        sized = replace(gpt, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        try:
            windows, measured = _largest_that_fits(
                sized, probe, max(1, _PROBED_TOKENS // gpt.block_size)
            )
        except UserError:
            if best is None:
                raise
            break
        seconds_per_token = measured.micro_batch_seconds / (windows * gpt.block_size)
        rate = (_COMPILE_GAIN if seconds >= _WORTH_COMPILING else 1.0) / seconds_per_token
        # The optimizer's part of a step, at the batch that would be trained with.
        batch = _good_batch(rate * seconds)
        rate = batch / (batch / rate + measured.update_seconds)
        parameters = _count(sized).tied
        bits = expected_bits_per_byte(parameters, rate * seconds)
        if best and bits > best[0]:
            break  # the curve has one valley
        best = (bits, sized, rate)
    assert best is not None
    return best[1], best[2]


def _good_batch(tokens: float) -> int:
    """Tokens per optimizer step for a run of so many tokens: more for longer runs.

    The batch beyond which larger ones no longer save steps grows as training goes on (McCandlish
    et al. 2018, arXiv 1812.06162).
    """
    return 1 << round(min(17.0, max(11.0, math.log2(2048 * math.sqrt(tokens / 4e6)))))


def _largest_that_fits(gpt: GPTConfig, probe: Any, windows: int) -> tuple[int, Measurement]:
    """The micro-batch: all windows of a step, or the largest of its halves that fits."""
    batch_size = windows
    while (measured := probe(gpt, batch_size)) is None:
        if batch_size == 1:
            raise UserError(
                "a model of which not one window fits into the memory",
                "a device with more memory, or a smaller model",
                "--model.gpt.n_embd 128 --model.gpt.n_layer 2 --model.gpt.n_head 2",
            )
        batch_size = max(1, batch_size // 2)
    return batch_size, measured


def _try_compiled(gpt: GPTConfig, probe: Any, batch_size: int) -> Measurement | None:
    """The same, compiled; None where that does not work."""
    try:
        measured: Measurement | None = probe(gpt, batch_size, True)
    except Exception as error:  # the compiler has many ways to fail, and eager always works
        why = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"  torch.compile does not work here: {why}", file=sys.stderr)
        return None
    return measured
