"""The options of sampling."""

import math
from dataclasses import dataclass
from typing import Literal

from slm.model.config import check


@dataclass(frozen=True)
class SamplingOptions:
    """How a story continues after its prompt. Options of a story, never of a model.

    Raises:
        ValueError: A field is out of range, or two contradict each other.
    """

    temperature: float = 0.8
    """Divides the logits: below 1 is safer, above 1 bolder, 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Choose among the k likeliest tokens only; null means among all."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability (nucleus sampling)."""
    min_p: float | None = None
    """Leave out tokens with less than this share of the likeliest token's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that have occurred become less likely; 1 changes nothing."""
    no_repeat_ngram: int | None = None
    """No sequence of this many tokens occurs twice in a story."""
    min_new_tokens: int = 0
    """Neither end-of-text nor a stop text ends the story before it has this many new tokens."""
    max_new_tokens: int = 300
    """The story is cut here if the model has not ended it before."""
    stop: tuple[str, ...] = ()
    """Texts that end the story, before they appear in it; end-of-text always ends it."""
    seed: int = 1337
    """Same seed, same checkpoint, same prompt: same story. On a CPU, with the number formats of
    `predict`, it does not depend on stories generated together with it either."""
    num_samples: int = 1
    """Stories per prompt, with seeds seed, seed + 1, …"""
    past_context: Literal["rebuild", "stop"] = "rebuild"
    """What happens when a story outgrows the model's context: it continues from the last half of
    the context (`rebuild`), or ends there (`stop`)."""
    log_probs: int | None = None
    """Keep each token's log-probability, before temperature and filters, and those of this many of
    the likeliest tokens at its position; null keeps none."""

    def __post_init__(self) -> None:
        none_or = " or null"
        valid = math.isfinite(self.temperature) and self.temperature >= 0
        check(self, "temperature", valid, "0 or more")
        check(self, "top_k", self.top_k is None or self.top_k >= 1, "1 or more," + none_or)
        check(self, "top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        check(self, "min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1")
        valid = math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0
        check(self, "repetition_penalty", valid, "above 0, such as 1.1, or 1 for none")
        n = self.no_repeat_ngram
        check(self, "no_repeat_ngram", n is None or n >= 2, "2 or more, such as 4," + none_or)
        check(self, "max_new_tokens", self.max_new_tokens >= 1, "1 or more")
        valid = 0 <= self.min_new_tokens <= self.max_new_tokens
        check(self, "min_new_tokens", valid, f"from 0 to max_new_tokens, {self.max_new_tokens}")
        check(self, "stop", not isinstance(self.stop, str), "a tuple of texts")
        check(self, "stop", all(self.stop), "texts that a story may contain")
        check(self, "seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        check(self, "num_samples", self.num_samples >= 1, "1 or more")
        valid = self.seed + self.num_samples <= 2**63
        check(self, "seed", valid, f"lower, with {self.num_samples} samples")
        check(self, "log_probs", self.log_probs is None or self.log_probs >= 0, "0 or more")
        choices = ("rebuild", "stop")
        check(self, "past_context", self.past_context in choices, "rebuild or stop")
        if self.temperature == 0:
            why = "with temperature 0, which always takes the likeliest token"
            for name in ("top_p", "min_p"):
                check(self, name, getattr(self, name) is None, f"null {why}")
            check(self, "num_samples", self.num_samples == 1, f"1 {why}")
