"""Sampling options, and the step from logits to one token id.

Shape suffixes: V vocabulary, K candidates (the top k).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Options of a story, never of a model.

    Raises:
        ValueError: A field is out of range.
    """

    temperature: float = 0.8
    """Divides the logits: below 1 is safer, above 1 bolder, 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Choose among the k likeliest tokens only; null means among all."""
    max_new_tokens: int = 300
    """The story is cut here if the model has not ended it before."""
    seed: int = 1337
    """Same seed, same checkpoint, same prompt: same story."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it has to be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it has to be 1 or more, or null for all")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it has to be 1 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it has to be from 0 to 2^63 - 1")


def sample(logits: Tensor, options: SamplingOptions, generator: torch.Generator) -> int:
    """Draws one token id from softmax(logits / temperature), cut to the top k.

    Args:
        logits: Logits of one position, (V,).
        options: Temperature and top-k; the other fields are not read.
        generator: Source of randomness, on the CPU, so that a seed means the same everywhere.
    """
    logits_V = logits.float().cpu()
    if options.temperature == 0:
        return int(logits_V.argmax())
    candidates_K, ids_K = logits_V.topk(min(options.top_k or logits_V.numel(), logits_V.numel()))
    # Relative to the likeliest, so that no temperature is so low that the quotient overflows.
    probabilities_K = ((candidates_K - candidates_K[0]) / options.temperature).softmax(dim=0)
    return int(ids_K[torch.multinomial(probabilities_K, 1, generator=generator)])
