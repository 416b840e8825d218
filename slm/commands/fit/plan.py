"""The plan behind `fit --budget`: what to train, and how, so that it finishes within the budget."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from slm.commands.fit.options import FitOptions, check_data, check_options, check_resumed
from slm.errors import UserError, user_errors
from slm.hardware import find_device
from slm.model import GPT, GPTConfig
from slm.model.gpt import ParameterCounts
from slm.training.callbacks.device_check import check_device
from slm.training.callbacks.time_budget import TimeBudget, format_duration, parse_duration
from slm.training.checkpoint import Checkpoint
from slm.training.precision import resolve_precision
from slm.training.probe import Measurement, measure
from slm.training.scaling import expected_bits_per_byte

BASE_CONFIG = "modern-20min"
"""The config that a budget starts from if none is named."""

SIZES = (
    (2, 2, 128), (3, 2, 192), (4, 2, 224), (4, 4, 256), (5, 5, 320), (6, 6, 384), (8, 8, 512),
)  # fmt: skip
"""Layers, heads and width of the models to choose from."""

_COMPILE_GAIN = 1.4  # what compiling usually brings; measured once the size is chosen
_WORTH_COMPILING = 60.0  # seconds; below, compiling takes longer than training
_PROBED_TOKENS = 2048  # in the steps that compare sizes
_VALIDATION_SHARE = 0.02  # of the time, for validations before the last one

Probe = Callable[[GPTConfig, int, bool], Measurement | None]
"""Measures a shape with some windows per micro-batch, compiled or not; None if out of memory."""


@dataclass(frozen=True)
class Plan:
    """How a time is used."""

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
        """Steps between validations: nine at most, fewer if they would take too long."""
        seconds = self.validation_tokens / (3 * self.tokens / self.seconds)  # forward is a third
        count = min(9, int(_VALIDATION_SHARE * self.seconds / seconds))
        return self.steps // (count + 1) + 1 if count else 10 * self.steps

    def options(self, options: FitOptions) -> dict[str, Any]:
        """The options of `fit` that carry it out, without those that the user has given."""
        planned = {
            "model.gpt.n_layer": self.gpt.n_layer,
            "model.gpt.n_head": self.gpt.n_head,
            "model.gpt.n_embd": self.gpt.n_embd,
            "model.compile": self.compile,
            "data.batch_size": self.batch_size,
            "trainer.accumulate_grad_batches": self.accumulate,
            "trainer.precision": self.precision,
            "trainer.devices": 1,
        }
        intervals = {
            "model.optimizer.warmup_steps": min(options.optimizer.warmup_steps, self.steps // 10),
            "val_interval": self.val_interval,
            "save_interval": max(1, self.steps // 10),
        }
        return planned | {
            name: value for name, value in intervals.items() if f"--{name}" not in options.given
        }

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


def plan_run(
    options: FitOptions,
    checkpoint: Checkpoint | None,
    initial: Checkpoint | None,
    choose_size: bool,
) -> tuple[TimeBudget | None, dict[str, Any]]:
    """Checks the options of a run, and plans it if it has a budget.

    The data are prepared before anything is measured, so that errors in them are found first.

    Returns:
        The clock of the budget, if there is one, and the options that the plan changes.
    """
    if checkpoint is not None:
        check_resumed(options, checkpoint)
    check_options(options)
    if options.budget is None:
        return None, {}
    seconds = parse_duration(options.budget)
    endless = {"trainer.max_steps": -1}
    if resumed := _resume_budget(checkpoint, seconds, options.budget):
        return resumed, endless
    with user_errors("slm fit --help explains it"):
        find_device(options.trainer.accelerator)
        check_data(options, options.data, initial)
        options.data.prepare_data()
        options.data.setup("fit")
        tokens = options.data.manifest.splits["validation"].tokens
        plan = make_plan(options, seconds, validation_tokens=tokens, choose_size=choose_size)
    print(plan.describe(), file=sys.stderr)
    return TimeBudget(seconds, plan.steps), plan.options(options) | endless


def _resume_budget(checkpoint: Checkpoint | None, seconds: float, budget: str) -> TimeBudget | None:
    """The clock of a resumed run with a budget; None if there is no such run."""
    states = checkpoint.contents["callbacks"] if checkpoint else {}
    saved = states.get(TimeBudget.__qualname__)
    if checkpoint is None or not saved:
        return None
    if saved["spent"] >= seconds and checkpoint.validated:
        raise UserError(
            f"{checkpoint.path} has already been trained for {format_duration(saved['spent'])}",
            f"a larger budget for the whole run than {budget}",
            f"--budget {math.ceil(2 * saved['spent'])}s",
        )
    steps = round(saved["steps"] * seconds / saved["seconds"])
    return TimeBudget(seconds, max(1, steps))


def make_plan(
    options: FitOptions, seconds: float, *, validation_tokens: int, choose_size: bool
) -> Plan:
    """Measures what fits into a time; options that the user has given are kept.

    Only if `choose_size` is set, the plan chooses layers, width and the tokens per step.
    """
    gpt, trainer = options.gpt, options.trainer
    device = find_device(trainer.accelerator)
    precision = resolve_precision(trainer.precision, device.type)
    print(
        f"Planning   {format_duration(seconds)} on {device.type}: measuring a few steps",
        file=sys.stderr,
    )
    if options.check_device and device.type != "cpu":
        with torch.random.fork_rng():
            check_device(GPT(gpt), device, precision)

    def probe(gpt: GPTConfig, windows: int, compile: bool) -> Measurement | None:
        return measure(
            gpt, options.optimizer, device, batch_size=windows, precision=precision, compile=compile
        )

    windows = options.data.batch_size * trainer.accumulate_grad_batches
    if choose_size:
        gpt, rate = _best_size(gpt, probe, seconds)
        if not {"--data.batch_size", "--trainer.accumulate_grad_batches"} & options.given:
            windows = max(1, _good_batch(rate * seconds) // gpt.block_size)
    batch_size, measured = _largest_that_fits(gpt, probe, windows)
    chosen = options.compile if "--model.compile" in options.given else None
    compile = False
    if chosen or (chosen is None and seconds >= _WORTH_COMPILING):
        compiled = _try_compiled(gpt, probe, batch_size)
        pays = compiled and compiled.micro_batch_seconds < 0.97 * measured.micro_batch_seconds
        compile = bool(chosen or pays)
        measured = compiled if compiled and compile else measured
    accumulate = -(-windows // batch_size)
    return Plan(
        seconds, gpt, precision, compile, batch_size, accumulate, validation_tokens, measured
    )


def _count(gpt: GPTConfig) -> ParameterCounts:
    """The sizes of a model, without allocating one or drawing random numbers."""
    with torch.device("meta"):
        return GPT(gpt).parameter_counts()


def _best_size(gpt: GPTConfig, probe: Probe, seconds: float) -> tuple[GPTConfig, float]:
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
        # The optimizer's share of a step, at the batch that would be trained with.
        batch = _good_batch(rate * seconds)
        rate = batch / (batch / rate + measured.update_seconds)
        bits = expected_bits_per_byte(_count(sized).tied, rate * seconds)
        if best and bits > best[0]:
            break  # the curve has one minimum
        best = (bits, sized, rate)
    assert best is not None
    return best[1], best[2]


def _good_batch(tokens: float) -> int:
    """Tokens per optimizer step for a run of so many tokens: more for longer runs.

    The batch beyond which larger ones no longer save steps grows as training continues (McCandlish
    et al. 2018, arXiv 1812.06162).
    """
    return 1 << round(min(17.0, max(11.0, math.log2(2048 * math.sqrt(tokens / 4e6)))))


def _largest_that_fits(gpt: GPTConfig, probe: Probe, windows: int) -> tuple[int, Measurement]:
    """The micro-batch: all windows of a step, or the largest of its halves that fits."""
    batch_size = windows
    while (measured := probe(gpt, batch_size, False)) is None:
        if batch_size == 1:
            raise UserError(
                "a model of which not even one window fits into the memory",
                "a device with more memory, or a smaller model",
                "--model.gpt.n_embd 128 --model.gpt.n_layer 2 --model.gpt.n_head 2",
            )
        batch_size = max(1, batch_size // 2)
    return batch_size, measured


def _try_compiled(gpt: GPTConfig, probe: Probe, batch_size: int) -> Measurement | None:
    """The same, compiled; None if that does not work."""
    try:
        return probe(gpt, batch_size, True)
    except Exception as error:  # the compiler has many ways to fail, and eager always works
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"  torch.compile does not work here: {reason}", file=sys.stderr)
        return None
