"""`bench generate`: how fast stories are generated."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal

import torch

from slm.bench.generation_speed import (
    PROMPT_LENGTH,
    Speed,
    bytes_per_token,
    measure,
    memory_speed,
    slm_generator,
    transformers_generator,
)
from slm.bench.llama_cpp import FORMATS, LlamaCpp
from slm.commands.inference import make_decode
from slm.commands.lookup import open_named
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.configs import model_of_config
from slm.commands.parsing.device import DeviceOptions
from slm.commands.parsing.errors import output_path
from slm.commands.parsing.options import parse
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError, user_errors
from slm.evaluation.loss import measure_loss
from slm.evaluation.texts import texts_of
from slm.files import json_text
from slm.generation import SamplingOptions
from slm.generation.compiled import Format
from slm.generation.quantization import (
    Quantization,
    for_inference,
    native_formats,
    resolve_quantization,
)
from slm.hardware import describe_machine
from slm.model import GPT, GPTConfig
from slm.training.checkpoint import Checkpoint

_COLD_TOKENS = 100
Baseline = Literal["transformers", "llama.cpp"]


@dataclass(frozen=True)
class BenchGenerateOptions:
    """The options of `bench generate`."""

    ckpt_path: str | None = None
    """A checkpoint, or `last` or `best` of the newest run."""
    config: str | None = None
    """Instead: a config, for random weights of its shape."""
    weights: list[Quantization] | None = None
    """Number formats to measure; null takes all that this device multiplies natively."""
    stories: list[int] = field(default_factory=lambda: [1, 16])
    """Numbers of stories that are generated together; a list."""
    tokens: int | None = None
    """New tokens per story; null: 200, or what fits the context."""
    temperature: float = 0.8
    """As in predict."""
    top_k: int | None = 20
    """As in predict."""
    repeats: int = 5
    """Rounds, of which the median counts."""
    vs: list[Baseline] | Baseline | None = None
    """`transformers` or `llama.cpp`, or a list of both: generates with the same weights, in rounds
    with slm. llama.cpp is on the CPU, and has f16 in place of bf16."""
    compile: bool = False
    """Whether to measure compiled decoding, too."""
    loss_tokens: int | None = 20_000
    """Measure what quantization costs on about this many tokens of the validation split; null reads
    all, 0 leaves it out."""
    cold: bool = True
    """Whether to time `predict` from the start of its process, too."""
    json: str | None = None
    """Also write the measurements to a JSON file."""
    trainer: DeviceOptions = DeviceOptions()

    @property
    def baselines(self) -> Sequence[Baseline]:
        """What to compare with."""
        return self.vs if isinstance(self.vs, list) else [self.vs] if self.vs else []

    def __post_init__(self) -> None:
        if "llama.cpp" in self.baselines and self.trainer.device.type != "cpu":
            raise ValueError("--vs llama.cpp on a GPU; --trainer.accelerator cpu")
        if self.config and self.ckpt_path:
            raise ValueError("--config and --ckpt_path; one of them: random or trained weights")
        for name, values in (("stories", self.stories), ("repeats", [self.repeats])):
            if not values or min(values) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}; 1 or more")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"--tokens {self.tokens}; 1 or more")


def run(arguments: Arguments) -> int:
    """Measures how fast stories are generated, and prints a table."""
    usage = "slm bench generate [--ckpt_path FILE | --config FILE] [--option value ...]"
    options = parse("bench", BenchGenerateOptions, arguments.with_configs_found(), usage)
    out = output_path("--json", options.json)
    checkpoint = None
    if options.config:
        torch.manual_seed(1337)
        model = GPT(model_of_config(options.config)).eval()
    else:
        checkpoint = open_named(options.ckpt_path, options.trainer.logs)
        model = checkpoint.make_model()
    facts = bench_generate(options, model, checkpoint)
    if out:
        out.write_text(json_text(facts), encoding="utf-8")
    return 0


def bench_generate(
    options: BenchGenerateOptions, model: GPT, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """Measures, and prints each part as soon as it is known; returns what was measured."""
    device, formats, sampling = _plan(options)
    tokens = _new_tokens(options, model.config)
    models: dict[Format, GPT] = {name: for_inference(model, name, device) for name in formats}
    generators = {
        f"slm {name}": (slm_generator(fast, sampling), bytes_per_token(fast))
        for name, fast in models.items()
    }
    if options.compile:
        most = max(options.stories)
        generators |= {
            f"slm {name}, compiled": (
                slm_generator(fast, sampling, make_decode(fast, name, device, most, True)),
                bytes_per_token(fast),
            )
            for name, fast in models.items()
        }
    if "llama.cpp" in options.baselines:
        tokenizer = checkpoint.make_tokenizer() if checkpoint else _any_tokenizer(model.config)
        generators |= {
            f"llama.cpp {FORMATS[name]}": (
                LlamaCpp(model, tokenizer, name, sampling).run,
                bytes_per_token(fast),
            )
            for name, fast in models.items()
        }
    if "transformers" in options.baselines:
        generators |= {
            f"transformers {name}": transformers_generator(model, name, device, sampling)
            for name in formats
            if name != "int8"
        }
    memory = memory_speed(device)
    speeds: list[Speed] = []
    for stories in options.stories:
        print(f"Measuring  {len(generators)} variants, stories at once: {stories}", file=sys.stderr)
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
        f"top-k {options.top_k}; medians of {options.repeats} rounds\n",
        *_table(speeds, memory),
        sep="\n",
        flush=True,
    )
    if checkpoint is not None:
        facts["cost"], cost = _quantization_cost(checkpoint, models, options.loss_tokens)
        print(f"\nLoss       {cost}", flush=True)
        if options.cold:
            facts["cold"], cold = _cold(checkpoint, options)
            print(cold)
    return facts


def _plan(
    options: BenchGenerateOptions,
) -> tuple[str, list[Format], SamplingOptions]:
    """Device, number formats and sampling; prints which formats are left out."""
    device = options.trainer.device.type
    with user_errors("slm bench generate --help explains it"):
        named = options.weights or native_formats(device)
        formats = [resolve_quantization(name, device) for name in named]
        sampling = SamplingOptions(options.temperature, options.top_k)
    if not options.weights and "bf16" not in formats:
        print(f"Left out   bf16, which this {device} does not multiply natively", file=sys.stderr)
    return device, list(dict.fromkeys(formats)), sampling


def _new_tokens(options: BenchGenerateOptions, shape: GPTConfig) -> int:
    """New tokens per story."""
    room = shape.block_size - PROMPT_LENGTH
    tokens = options.tokens or min(200, room)
    if options.vs and tokens > room:
        raise UserError(
            f"--tokens {tokens} --vs … for a context of {shape.block_size}",
            f"at most {room}: the baselines do not go past the context",
            f"--tokens {room}",
        )
    return tokens


def _any_tokenizer(config: GPTConfig) -> Tokenizer:
    """One with as many tokens, of a byte or two; for random weights it does not matter which."""
    tokens = [bytes(pair) for size in (1, 2) for pair in product(range(256), repeat=size)]
    if not 256 < config.vocab_size <= len(tokens):
        raise UserError(
            f"--vs llama.cpp for a vocabulary of {config.vocab_size}",
            f"257 to {len(tokens)}",
            "another --config, or a checkpoint",
        )
    ranks = {token: rank for rank, token in enumerate(tokens[: config.vocab_size - 1])}
    return Tokenizer("bpe", ranks, config.vocab_size)


def _table(speeds: Sequence[Speed], memory: float) -> list[str]:
    width = max(len(speed.teller) for speed in speeds)
    baseline = next((s.teller for s in reversed(speeds) if s.teller.endswith("fp32")), None)
    reference = {s.stories: s.tokens_per_second for s in speeds if s.teller == baseline}
    title = f"times {baseline}" if baseline else ""
    lines = [
        f"{'':{width}}  stories  tokens/s   slowest to fastest  {title:>23}  first token  "
        "share of memory bandwidth"
    ]
    for s in speeds:
        times = f"{s.tokens_per_second / reference[s.stories]:.2f}" if baseline else ""
        lines.append(
            f"{s.teller:{width}}  {s.stories:>7}  {s.tokens_per_second:>8,.0f}  "
            f"{s.slowest:>8,.0f} to {s.fastest:<8,.0f}  {times:>23}  "
            f"{s.first_token_ms:>8.1f} ms  {s.weights_per_second / memory:>11.0%}"
        )
    return lines


def _quantization_cost(
    checkpoint: Checkpoint, models: Mapping[Format, GPT], tokens: int | None
) -> tuple[dict[str, float] | None, str]:
    """Bits per byte of the model's validation split in each number format, and a line about it."""
    if tokens == 0:
        return None, "not measured: --loss_tokens 0"
    try:
        texts = texts_of(checkpoint, prepare=False)
        checkpoint.check_data(texts.folder, texts.manifest, "validation")
    except UserError as error:
        return None, f"not measured: {error.found}"
    windows = texts.windows(checkpoint.gpt.block_size)
    losses = measure_loss(
        {str(name): m for name, m in models.items()}, windows, texts.tokenizer, tokens
    )
    found = {name: loss["bits_per_byte"] for name, loss in losses.items()}
    base = found.get("fp32")
    line = ", ".join(
        f"{name} {bits:.4f}" + (f" ({bits - base:+.5f})" if base and name != "fp32" else "")
        for name, bits in found.items()
    )
    predicted = next(iter(losses.values()))["tokens"]
    return found, f"{line} bits per byte on {predicted:,} tokens of {texts.folder}"


def _cold(checkpoint: Checkpoint, options: BenchGenerateOptions) -> tuple[dict[str, float], str]:
    """Seconds of whole `predict` processes."""
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
    times_text = ", ".join(f"{seconds:.1f} s for {name}" for name, seconds in found.items())
    return found, f"Cold       `slm predict` from its start to its end: {times_text}"
