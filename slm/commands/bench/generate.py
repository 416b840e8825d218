"""`bench generate`: how fast stories are told."""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from slm.bench.generation_speed import (
    PROMPT_LENGTH,
    Speed,
    bytes_per_token,
    measure,
    memory_speed,
    slm_generator,
)
from slm.bench.quantization_cost import quantization_cost
from slm.bench.transformers_baseline import transformers_baselines
from slm.commands.configs import model_of_config
from slm.commands.lookup import find_checkpoint_argument, names
from slm.commands.parsing import (
    QuickParser,
    compiling_explained,
    quick_parser,
)
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.quantization import (
    Quantization,
    can_compile,
    for_inference,
    native_formats,
    resolve_quantization,
)
from slm.hardware import Accelerator, describe_machine, find_device
from slm.model import GPT
from slm.training.checkpoint import Checkpoint

_COLD_TOKENS = 100


def bench_generate(words: Sequence[str]) -> dict[str, Any]:
    """Measures how fast stories are told, and prints a table.

    Args:
        words: The command line behind `bench generate`.

    Returns:
        What was measured, for a file.

    Raises:
        UserError: The input has to change.
    """
    parser = _make_parser()
    rest = list(words)
    checkpoint: Checkpoint | None = None
    if not names(rest, "--config") or names(rest, "--ckpt_path"):
        rest, checkpoint = find_checkpoint_argument("bench", rest)
    options = parser.parse_args(rest)
    _check(options)
    if checkpoint is None:
        torch.manual_seed(1337)
        model = GPT(model_of_config(Path(options.config)))
    else:
        model = checkpoint.make_model()
    with compiling_explained() if options.compile else nullcontext():
        return _bench(options, model.eval(), checkpoint)


def _check(options: Any) -> None:
    """Checks before anything is measured.

    Raises:
        UserError: An option is out of range, or two contradict.
    """
    if options.config and options.ckpt_path:
        raise UserError(
            "--config and --ckpt_path", "one of them: random weights, or trained ones", "leave one"
        )
    for name, values in (("stories", options.stories), ("repeats", [options.repeats])):
        if not values or min(values) < 1:
            raise UserError(f"--{name} {getattr(options, name)}", "1 or more", f"--{name} 1")
    if options.tokens is not None and options.tokens < 1:
        raise UserError(f"--tokens {options.tokens}", "1 or more", "--tokens 100")


def _make_parser() -> QuickParser:
    parser = quick_parser(
        "bench",
        "slm bench generate [--ckpt_path FILE | --config FILE] [--option value ...]",
    )
    for name, kind, default, words in (
        ("ckpt_path", str | None, None, "A checkpoint, or `last` or `best` of the newest run."),
        ("config", str | None, None, "Instead: a config, for random weights of its shape."),
        (
            "weights",
            list[Quantization],
            None,
            "Kinds to measure; null takes all that this device multiplies natively.",
        ),
        ("stories", list[int], [1, 16], "How many stories side by side; a list."),
        ("tokens", int | None, None, "New tokens per story; null: 200, or what fits the context."),
        ("temperature", float, 0.8, "As in predict."),
        ("top_k", int | None, 20, "As in predict."),
        ("repeats", int, 5, "Rounds, of which the median counts."),
        (
            "vs",
            Literal["transformers"] | None,
            None,
            "`transformers` tells with the same weights, in turns with slm.",
        ),
        ("compile", bool, False, "Whether to measure the compiled pass, too, where there is one."),
        (
            "loss_tokens",
            int | None,
            20_000,
            "Measure what fast weights cost on about this many tokens of the validation split; "
            "null reads all, 0 leaves it out.",
        ),
        ("cold", bool, True, "Whether to time `predict` from a cold process, too."),
        ("json", str | None, None, "Also write the figures to a file."),
        ("trainer.accelerator", Accelerator, "auto", "Device."),
        ("trainer.default_root_dir", str | None, None, "Where lightning_logs is."),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=words)
    return parser


def _plan(
    options: Any,
) -> tuple[str, list[Literal["fp32", "bf16", "int8"]], SamplingOptions]:
    """The device, the kinds of weights and how tokens are chosen; says what it leaves out.

    Raises:
        UserError: An option is out of range, or there is no such device.
    """
    try:
        device = find_device(options.trainer.accelerator).type
        native = native_formats(device)
        kinds = [resolve_quantization(weights, device) for weights in options.weights or native]
        sampling = SamplingOptions(options.temperature, options.top_k)
    except ValueError as error:
        raise UserError.from_value_error(error, "slm bench generate --help explains it") from error
    if not options.weights and "bf16" not in kinds:
        print(f"Left out   bf16, which this {device} does not multiply natively", file=sys.stderr)
    return device, list(dict.fromkeys(kinds)), sampling


def _bench(options: Any, model: GPT, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Measures, and prints each part when it is there."""
    device, kinds, sampling = _plan(options)
    room = model.config.block_size - PROMPT_LENGTH
    tokens = options.tokens or min(200, room)
    if options.vs and tokens > room:
        raise UserError(
            f"--tokens {tokens} --vs transformers for a context of {model.config.block_size}",
            f"at most {room}: its GPT-2 ends there",
            f"--tokens {room}",
        )
    models: dict[str, GPT] = {kind: for_inference(model, kind, device) for kind in kinds}
    generators = {
        f"slm {kind}": (slm_generator(fast, sampling), bytes_per_token(fast))
        for kind, fast in models.items()
    }
    generators |= {
        f"slm {kind}, compiled": (
            slm_generator(fast, sampling, compile=True),
            bytes_per_token(fast),
        )
        for kind, fast in models.items()
        if options.compile and can_compile(kind, device)
    }
    if options.vs:
        theirs = [kind for kind in kinds if kind != "int8"]
        generators |= transformers_baselines(model, theirs, device, sampling)
    memory = memory_speed(device)
    speeds: list[Speed] = []
    for stories in options.stories:
        print(
            f"Measuring  {len(generators)} generators, stories at once: {stories}", file=sys.stderr
        )
        speeds += measure(
            generators, stories, tokens, model.config.vocab_size, options.repeats, device
        )
    facts: dict[str, Any] = {
        "machine": describe_machine(device),
        "model": asdict(model.config),
        "checkpoint": str(checkpoint.path) if checkpoint else None,
        "tokens": tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "repeats": options.repeats,
        "memory_bytes_per_second": memory,
        "speeds": [asdict(speed) for speed in speeds],
    }
    print(
        f"Model      {model.parameter_counts()}\n"
        f"Machine    {facts['machine']}; memory reads {memory / 1e9:.0f} GB/s\n"
        f"Stories    {tokens} new tokens each, temperature {options.temperature}, "
        f"top-k {options.top_k}; medians of {options.repeats} turns\n",
        *_table(speeds, memory),
        sep="\n",
        flush=True,
    )
    if checkpoint is not None:
        facts["cost"], cost = quantization_cost(checkpoint, models, options.loss_tokens)
        print(f"\n{cost}", flush=True)
        if options.cold:
            facts["cold"], cold = _cold(checkpoint, options)
            print(cold)
    return facts


def _table(speeds: Sequence[Speed], memory: float) -> list[str]:
    width = max(len(speed.teller) for speed in speeds)
    rival = next((s.teller for s in reversed(speeds) if s.teller.endswith("fp32")), None)
    reference = {s.stories: s.tokens_per_second for s in speeds if s.teller == rival}
    title = f"times {rival}" if rival else ""
    lines = [
        f"{'':{width}}  stories  tokens/s   slowest to fastest  {title:>23}  first token  "
        "share of memory's speed"
    ]
    for s in speeds:
        times = f"{s.tokens_per_second / reference[s.stories]:.2f}" if rival else ""
        lines.append(
            f"{s.teller:{width}}  {s.stories:>7}  {s.tokens_per_second:>8,.0f}  "
            f"{s.slowest:>8,.0f} to {s.fastest:<8,.0f}  {times:>23}  "
            f"{s.first_token_ms:>8.1f} ms  {s.weights_per_second / memory:>11.0%}"
        )
    return lines


def _cold(checkpoint: Checkpoint, options: Any) -> tuple[dict[str, float], str]:
    """Seconds of whole `predict` processes, from their start to their end."""
    found = {}
    for tokens in (1, _COLD_TOKENS):
        command = [
            sys.executable, "-m", "slm.cli", "predict", "--ckpt_path", str(checkpoint.path),
            "--min_new_tokens", str(tokens), "--max_new_tokens", str(tokens),
            "--trainer.accelerator", options.trainer.accelerator,
        ]  # fmt: skip
        times = []
        for _ in range(3):
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return {}, f"Cold       not measured: {done.stderr.strip()}"
            times.append(time.perf_counter() - started)
        found[f"{tokens} new token{'s' * (tokens > 1)}"] = sorted(times)[1]
    said = ", ".join(f"{seconds:.1f} s for {name}" for name, seconds in found.items())
    return found, f"Cold       `slm predict` from its start to its end: {said}"
