"""What generated stories are like: ends, length, repetition, words, names, and copies."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slm.data.tokenizer import Tokenizer
from slm.evaluation.overlap import Overlap
from slm.evaluation.prompts import PROMPTS
from slm.generation import SamplingOptions
from slm.generation.storyteller import StoryRequest, Storyteller
from slm.model import GPT

_ROWS = {"cpu": 16, "mps": 64, "cuda": 64}
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
COPIED_TOKENS = 64
COPIED_SHARE = 0.5
_SHORTEST_COPY = 24


@dataclass(frozen=True)
class GeneratedStory:
    """A story to be looked at."""

    prompt: str
    text: str
    """What came behind the prompt."""
    ended: bool | None
    """Whether the model ended it by itself; None if that is not known."""
    name: str | None = None
    """Who the prompt is about."""


@dataclass(frozen=True)
class Manner:
    """What some stories are like. Shares are from 0 to 1."""

    stories: int
    ended: float | None
    """Share that came to an end by itself within the tokens allowed."""
    words: float
    """Mean number of words, the prompt left out."""
    repetition: float
    """Mean share of four-word sequences that stood in the same story before."""
    distinct_1: float
    """Different words among all (Li et al. 2016, arXiv 1510.03055), of equally long excerpts."""
    distinct_2: float
    """Different pairs of words among all."""
    names_kept: float | None
    """Share of prompts with a named character whose name comes again."""
    rare_words: float | None = None
    """Share of words that are not among the training text's 1,000 most frequent. This and what
    follows is None where there is no training text to compare with."""
    unknown_words: float | None = None
    """Share of words that the sampled training text does not hold at all: mostly invented."""
    longest_copy: float | None = None
    """Median over stories of the longest run of tokens that the training text holds, too."""
    novel_5_grams: float | None = None
    """Mean share of five-token sequences that the training text does not hold."""
    memorised: float | None = None
    """Share of stories that are copies: see `is_copy`."""


def generate_stories(
    model: GPT, tokenizer: Tokenizer, options: SamplingOptions
) -> list[GeneratedStory]:
    """A story for each of this project's prompts, each with a seed of its own."""
    requests = [
        StoryRequest(prompt, replace(options, seed=options.seed + place))
        for place, (_, prompt) in enumerate(PROMPTS)
    ]
    rows = _ROWS[model.token_embedding.weight.device.type]
    told = {}
    for story, _ in Storyteller(model, tokenizer).generate_all(requests, options, rows):
        if story.ended is not None:
            told[story.request] = GeneratedStory(
                story.request.prompt, story.text, story.ended == "end of text"
            )
    return [
        GeneratedStory(told[request].prompt, told[request].text, told[request].ended, name)
        for request, (name, _) in zip(requests, PROMPTS, strict=True)
    ]


def is_copy(overlap: Overlap) -> bool:
    """Whether a story is taken for memorised.

    It holds a run of 64 tokens of the training text, or one of 24 at least that is half of it.
    Formulas such as "Once upon a time, there was a little girl named Lily. She loved to" are
    shorter.
    """
    long_enough = overlap.longest >= _SHORTEST_COPY and overlap.share >= COPIED_SHARE
    return overlap.longest >= COPIED_TOKENS or long_enough


def describe(stories: Sequence[GeneratedStory]) -> Manner:
    """Looks at stories by themselves.

    Args:
        stories: At least one.
    """
    words = _words(stories)
    ends = [story.ended for story in stories if story.ended is not None]
    kept = [
        re.search(rf"\b{story.name}\b", story.text) is not None for story in stories if story.name
    ]
    return Manner(
        stories=len(stories),
        ended=_mean(ends) if ends else None,
        words=_mean([len(each) for each in words]),
        repetition=_mean([_repeated(each, 4) for each in words]),
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        names_kept=_mean(kept) if kept else None,
    )


def compare(
    manner: Manner,
    stories: Sequence[GeneratedStory],
    shared: Sequence[Overlap],
    frequent: Sequence[str],
) -> Manner:
    """Adds to what stories are like what only a comparison with the training text shows.

    Args:
        manner: Of the stories.
        stories: At least one.
        shared: What each has in common with the training text.
        frequent: The words of (a sample of) the training text, the most frequent first.
    """
    known, common = set(frequent), set(frequent[:1000])
    everything = [word for each in _words(stories) for word in each]
    return replace(
        manner,
        rare_words=_mean([word not in common for word in everything]),
        unknown_words=_mean([word not in known for word in everything]),
        longest_copy=float(np.median([overlap.longest for overlap in shared])),
        novel_5_grams=_mean([overlap.novel for overlap in shared]),
        memorised=_mean([is_copy(overlap) for overlap in shared]),
    )


def frequent_words(texts: Iterable[str]) -> list[str]:
    """The words of some texts, the most frequent first, in lower case."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return sorted(counts, key=lambda word: (-counts[word], word))


def _words(stories: Sequence[GeneratedStory]) -> list[list[str]]:
    return [_WORD.findall(story.text.lower()) for story in stories]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _repeated(words: Sequence[str], n: int) -> float:
    """Share of a text's n-grams that stood in it before."""
    grams = _grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(stories: Sequence[Sequence[str]], n: int, length: int = 60) -> float:
    """Share of different n-grams among all of the first `length` words of each story.

    Of excerpts, because the share falls as a text grows, whoever wrote it.
    """
    grams = [gram for words in stories for gram in _grams(words[:length], n)]
    return len(set(grams)) / len(grams) if grams else 0.0
