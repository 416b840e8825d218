"""Requests of OpenAI's completions protocol, as stories to generate.

https://platform.openai.com/docs/api-reference/completions, with the sampling options that it lacks.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from slm.data.tokenizer import Tokenizer
from slm.generation import SamplingOptions
from slm.generation.storyteller import Story, StoryRequest

Text = Annotated[str, AfterValidator(lambda text: text.encode(errors="replace").decode())]
"""A text; lone surrogates, which JSON can contain, become "?"."""
_MOST_LOG_PROBS = 20
_MOST_STOPS = 16
_MOST_WORDS = 8
_DEFAULTS = SamplingOptions()
_PUBLIC_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "num_samples": "n"}


class StreamOptions(BaseModel):
    """What a stream contains besides text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False
    """Whether a last event has the token counts."""


class CompletionRequest(BaseModel):
    """The body of a request. Defaults are those of `slm predict`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Text | None = None
    prompt: Text | list[int] | list[Text] | list[list[int]] = ""
    """Text, token ids as they are, or several of one kind. A text follows an end-of-text, as in
    training; token ids do only if they contain it."""
    words: list[Text] = Field(default=[], max_length=_MOST_WORDS)
    """Words that the story is to contain, if the model was trained on requests."""
    n: int = Field(default=1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=_MOST_LOG_PROBS)
    stop: Text | list[Text] | None = None
    seed: int | None = None
    max_tokens: int = Field(default=_DEFAULTS.max_new_tokens, ge=0)
    min_tokens: int = _DEFAULTS.min_new_tokens
    temperature: float = _DEFAULTS.temperature
    top_p: float | None = _DEFAULTS.top_p
    top_k: int | None = _DEFAULTS.top_k
    min_p: float | None = _DEFAULTS.min_p
    repetition_penalty: float = _DEFAULTS.repetition_penalty
    no_repeat_ngram: int | None = _DEFAULTS.no_repeat_ngram
    user: Text | None = None
    """Ignored."""
    # Accepted only with the values that mean nothing, which clients like to send.
    best_of: int | None = None
    suffix: Text | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class InvalidRequestError(Exception):
    """A request that cannot be fulfilled: what was found, what was expected."""

    def __init__(self, message: str, parameter: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.status = status


@dataclass(frozen=True)
class Allowed:
    """What a request may ask for."""

    model: str
    """The model's name."""
    context: int
    """Tokens that the model sees at once; a prompt has at most as many."""
    words: bool
    """Whether the model was trained on requests."""
    max_tokens: int
    """New tokens of a story."""
    stories: int
    """Stories of a request."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as ids; the first `hidden` ids, end-of-texts and words, are not text."""

    text: str
    ids: list[int]
    hidden: int


def read_prompts(body: CompletionRequest, allowed: Allowed, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of a request, whose default of `max_tokens` becomes one that is allowed.

    Raises:
        InvalidRequestError: The request asks for something that this model or server cannot do.
    """
    if body.model not in (None, allowed.model):
        raise InvalidRequestError(
            f"there is no model {body.model!r}; this server has {allowed.model!r}", "model", 404
        )
    best_of_n = body.best_of in (None, body.n)
    for name, accepted in (("best_of", best_of_n), ("suffix", not body.suffix)):
        if not accepted:
            raise InvalidRequestError(f"{name} is not supported; leave it out", name)
    for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
        if getattr(body, name):
            raise InvalidRequestError(f"{name} is not supported; leave it out", name)
    if body.words and not allowed.words:
        raise InvalidRequestError(
            "this model was not trained on requests for words; leave words out", "words"
        )
    if "max_tokens" not in body.model_fields_set:
        body.max_tokens = min(body.max_tokens, allowed.max_tokens)
    if body.max_tokens > allowed.max_tokens:
        raise InvalidRequestError(
            f"max_tokens is {body.max_tokens}; this server allows {allowed.max_tokens}",
            "max_tokens",
        )
    several = _as_several(body.prompt)
    if len(several) * body.n > allowed.stories:
        raise InvalidRequestError(
            f"{len(several)} prompts with n {body.n}; at most {allowed.stories} stories in all", "n"
        )
    return [_read_prompt(prompt, body.words, allowed, tokenizer) for prompt in several]


def _as_several(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt is an empty list; a text or token ids", "prompt")
    found: Any = prompt
    return [found] if isinstance(found[0], int) else found


def _read_prompt(
    prompt: str | list[int], words: Sequence[str], allowed: Allowed, tokenizer: Tokenizer
) -> Prompt:
    if isinstance(prompt, str):
        ids = tokenizer.encode_prompt(prompt, words)
        found = Prompt(prompt, ids, len(ids) - len(tokenizer.encode(prompt)))
    elif words:
        raise InvalidRequestError("words with token ids as prompt; a text, or no words", "words")
    elif not prompt or not 0 <= min(prompt) <= max(prompt) < tokenizer.n_vocab:
        raise InvalidRequestError(
            f"a prompt of no token ids, or with ids outside 0 to {tokenizer.n_vocab - 1}", "prompt"
        )
    else:
        found = Prompt(tokenizer.decode(prompt), prompt, 0)
    if len(found.ids) > allowed.context:
        raise InvalidRequestError(
            f"a prompt of {len(found.ids):,} tokens; the model's context is {allowed.context}",
            "prompt",
        )
    return found


def make_stories(
    body: CompletionRequest, prompts: Sequence[Prompt], tokenizer: Tokenizer
) -> list[Story]:
    """The stories to generate: for each prompt `n`, with consecutive seeds, as `slm predict` does.

    Raises:
        InvalidRequestError: An option is out of range.
    """
    stop = () if body.stop is None else body.stop
    seed = secrets.randbelow(1 << 31) if body.seed is None else body.seed
    try:
        options = SamplingOptions(
            temperature=body.temperature,
            top_k=body.top_k,
            # 1 takes all tokens; OpenAI's clients send it with temperature 0, too.
            top_p=None if body.top_p == 1 else body.top_p,
            min_p=body.min_p or None,
            repetition_penalty=body.repetition_penalty,
            no_repeat_ngram=body.no_repeat_ngram,
            min_new_tokens=body.min_tokens if body.max_tokens else 0,
            max_new_tokens=max(1, body.max_tokens),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
            num_samples=body.n,
            log_probs=body.logprobs,
        )
    except ValueError as error:
        message = str(error)
        for own, public in _PUBLIC_NAMES.items():
            message = message.replace(own, public)
        raise InvalidRequestError(message, message.split()[0]) from error
    if len(options.stop) > _MOST_STOPS:
        raise InvalidRequestError(f"{len(options.stop)} stop texts; at most {_MOST_STOPS}", "stop")
    return [
        Story(
            StoryRequest(
                prompt.text, replace(options, seed=seed + sample, num_samples=1), body.words
            ),
            tokenizer,
            prompt.ids,
        )
        for prompt in prompts
        for sample in range(body.n)
    ]
