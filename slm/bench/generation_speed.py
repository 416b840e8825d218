"""Speed of generation: tokens per second, time to the first token, share of memory bandwidth."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import nn

from slm.generation import SamplingOptions
from slm.generation.decode import PlainDecode
from slm.generation.engine import Engine, TokenSequence
from slm.generation.quantization import InferenceLinear
from slm.hardware import clock
from slm.model import GPT

GenerateFn = Callable[[Sequence[Sequence[int]], int], None]
"""Generates together: from prompts of one length, that many new tokens for each."""


@dataclass(frozen=True)
class Speed:
    """The speed of one variant with one number of stories at once."""

    teller: str
    stories: int
    tokens_per_second: float
    """New tokens of all stories, per second; the median of the rounds."""
    slowest: float
    fastest: float
    first_token_ms: float
    """From prompts to the first new token of each; median."""
    weights_per_second: float
    """Bytes of weights read per second, if every token of a story reads all of them once."""


PROMPT_LENGTH = 5


def make_prompts(stories: int, vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens: the speed does not depend on them."""
    draw = random.Random(stories)
    return [[draw.randrange(vocab_size) for _ in range(PROMPT_LENGTH)] for _ in range(stories)]


def slm_generator(
    model: GPT, options: SamplingOptions, decode: PlainDecode | None = None
) -> GenerateFn:
    """This project's engine, with a network of `for_inference`; end-of-text is never drawn."""
    seeds = count(options.seed)

    def run(prompts: Sequence[Sequence[int]], tokens: int) -> None:
        chosen = replace(options, min_new_tokens=tokens, max_new_tokens=tokens)
        batch = Engine(model, model.config.vocab_size - 1, len(prompts), decode)
        batch.admit([TokenSequence(p, replace(chosen, seed=next(seeds))) for p in prompts])
        while len(batch):
            batch.step()

    return run


def transformers_generator(
    model: GPT, dtype: str, device: str, options: SamplingOptions
) -> tuple[GenerateFn, int]:
    """The same weights in transformers, and the bytes of weights that a token reads."""
    from slm.export.hugging_face import to_transformers

    reference = to_transformers(model).to(device)
    if dtype == "bf16":
        reference = reference.to(torch.bfloat16)

    def run(prompts: Sequence[Sequence[int]], tokens: int) -> None:
        ids_BT = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            reference.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                do_sample=options.temperature > 0,
                temperature=options.temperature,
                top_k=options.top_k,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=reference.config.eos_token_id,
            )

    # The embedding is the head, or as large.
    return run, weight_bytes(reference.base_model, without=["wpe"])


def measure(
    generators: Mapping[str, tuple[GenerateFn, int]],
    stories: int,
    tokens: int,
    vocab_size: int,
    repeats: int,
    device: str,
) -> list[Speed]:
    """Measures all variants in rounds, so that a disturbance of the machine affects all of them.

    Each comes with the bytes of weights that a token reads. The first round does not count.
    """
    prompts = make_prompts(stories, vocab_size)
    whole: dict[str, list[float]] = {name: [] for name in generators}
    first: dict[str, list[float]] = {name: [] for name in generators}
    for round_ in range(repeats + 1):
        for name, (run, _) in generators.items():
            for times, length in ((first, 1), (whole, tokens)):
                started = clock(device)
                run(prompts, length)
                seconds = clock(device) - started
                if round_:
                    times[name].append(seconds)
    speeds = []
    for name, (_, weight_bytes) in generators.items():
        rates = [stories * tokens / seconds for seconds in whole[name]]
        median = statistics.median(rates)
        speeds.append(
            Speed(
                name,
                stories,
                median,
                min(rates),
                max(rates),
                1000 * statistics.median(first[name]),
                weight_bytes * median / stories,
            )
        )
    return speeds


def weight_bytes(model: nn.Module, *, without: Sequence[str] = ()) -> int:
    """Bytes of a network's parameters and buffers, without those of some modules."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in tensors.items()
        if not any(name.startswith(f"{module}.") for module in without)
    )


def bytes_per_token(model: GPT) -> int:
    """Bytes of weights that one token of one story reads: all but single rows of embeddings."""
    without = ["position_embedding"] + (["token_embedding"] if model.head is not None else [])
    packed = sum(part.n_bytes for part in model.modules() if isinstance(part, InferenceLinear))
    return packed + weight_bytes(model, without=without)


def memory_speed(device: str) -> float:
    """Bytes per second of a sum over half a gigabyte; the best of seven."""
    values = torch.ones(2**27, device=device)
    best = 0.0
    for _ in range(7):
        started = time.perf_counter()
        values.sum().item()
        best = max(best, values.numel() * 4 / (time.perf_counter() - started))
    return best
