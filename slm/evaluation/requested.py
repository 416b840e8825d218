"""Whether a model does what requests ask: how many of the words occur in its stories."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import snowballstemmer

from slm.data.requests import request_words
from slm.data.tokenizer import Tokenizer
from slm.evaluation.likelihood import Accuracy
from slm.generation import SamplingOptions
from slm.generation.storyteller import PROMPT, StoryRequest, Storyteller
from slm.model import GPT

_STORIES = 60
_ROWS = 16


@dataclass(frozen=True)
class RequestedWords:
    """The shares of requested words that occur, each over the same stories and seeds.

    `passed` is the sum of the stories' shares. The interval takes the stories, not the words, as
    independent, so it is rather too wide.
    """

    requested: Accuracy
    plain: Accuracy
    """Of the same words, when nothing was requested."""
    words: int
    """Words in all requests."""

    def to_plain(self) -> dict[str, Any]:
        """Everything, for a file."""
        sides = {"requested": self.requested, "plain": self.plain}
        return {
            "stories": self.requested.pairs,
            "words": self.words,
            **{
                name: {"share": side.share, "interval_95": list(side.interval())}
                for name, side in sides.items()
            },
        }


def measure_requests(
    model: GPT, tokenizer: Tokenizer, held_out: Sequence[str], seed: int
) -> RequestedWords | None:
    """Requests the words of held-out stories; None if these have none.

    The stories have the default prompt and sampling options, and consecutive seeds.
    """
    requests = [words for story in held_out if (words := request_words(story))][:_STORIES]
    if not requests:
        return None
    asked = _generate(model, tokenizer, requests, seed)
    plain = _generate(model, tokenizer, [[]] * len(requests), seed)
    sides = [
        sum(share_of_words(w, story) for w, story in zip(requests, stories, strict=True))
        for stories in (asked, plain)
    ]
    count = len(requests)
    return RequestedWords(
        Accuracy(count, sides[0]), Accuracy(count, sides[1]), sum(map(len, requests))
    )


def _generate(
    model: GPT, tokenizer: Tokenizer, requests: Sequence[Sequence[str]], seed: int
) -> list[str]:
    asked = [
        StoryRequest(PROMPT, SamplingOptions(seed=seed + index), words)
        for index, words in enumerate(requests)
    ]
    texts = dict.fromkeys(asked, "")
    for story, piece in Storyteller(model, tokenizer).generate_all(asked, _ROWS):
        texts[story.request] += piece
    return list(texts.values())


def share_of_words(words: Sequence[str], text: str) -> float:
    """The share of words that occur in a text, as whole words of the same stem.

    Stems by the Snowball stemmer for English (Porter 2001): "dragons" counts for "dragon", "ran"
    does not count for "run".
    """
    stems = {_stem(word) for word in re.findall(r"\w+", text)}
    return sum(_stem(word) in stems for word in words) / len(words)


@cache
def _stem(word: str) -> str:
    return str(snowballstemmer.stemmer("english").stemWord(word.lower()))
