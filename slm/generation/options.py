"""How a story goes on: the options of sampling."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SamplingOptions:
    """How a story goes on from its prompt. Options of a story, never of a model.

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
    """Texts in front of which the story ends; end-of-text always ends it."""
    seed: int = 1337
    """Same seed, same checkpoint, same prompt: same story. On a CPU, with the weights that
    `predict` makes, also whatever is told beside it."""
    num_samples: int = 1
    """Stories per prompt, with seeds seed, seed + 1, …"""
    past_context: Literal["rebuild", "stop"] = "rebuild"
    """What happens when a story outgrows the model's context: it goes on from the last half of
    what can be seen (`rebuild`), or ends there (`stop`)."""
    log_probs: bool = False
    """Whether to add up the log-probability of each token: what the model says, before
    temperature and filters."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it has to be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it has to be 1 or more, or null for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it has to be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it has to be from 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it has to be above 0, such as "
                "1.1, or 1 for none"
            )
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 2:
            raise ValueError(
                f"no_repeat_ngram is {self.no_repeat_ngram}; it has to be 2 or more, such as 4, "
                "or null"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it has to be 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens} with max_new_tokens "
                f"{self.max_new_tokens}; from 0 to max_new_tokens"
            )
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the text {self.stop!r}; a tuple of texts")
        if not all(self.stop):
            raise ValueError("stop is an empty text; a text that a story may hold")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it has to be from 0 to 2^63 - 1")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it has to be 1 or more")
        if self.seed + self.num_samples > 2**63:
            raise ValueError(f"seed is {self.seed}; with {self.num_samples} samples, a lower one")
        if self.past_context not in ("rebuild", "stop"):
            raise ValueError(f"past_context is {self.past_context}; it has to be rebuild or stop")
        if self.temperature == 0:
            for name in ("top_p", "min_p"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)} with temperature 0, which takes the "
                        f"likeliest token; a temperature above 0, or no {name}"
                    )
            if self.num_samples > 1:
                raise ValueError(
                    f"num_samples is {self.num_samples} with temperature 0, which tells the same "
                    "story each time; a temperature above 0, or one sample"
                )
