"""Statistics of generated stories: ends, length, repetition, words, names, and copies."""

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
    """A story to be evaluated."""

    prompt: str
    text: str
    """The text after the prompt."""
    ended: bool | None
    """Whether the model ended it with end-of-text; None if that is not known."""
    name: str | None = None
    """The prompt's main character."""


@dataclass(frozen=True)
class StoryStatistics:
    """Statistics of some stories. Shares are from 0 to 1."""

    stories: int
    ended: float | None
    """Share that ended with end-of-text within the tokens allowed."""
    words: float
    """Mean number of words after the prompt."""
    repetition: float
    """Mean share of four-word sequences that occurred in the same story before."""
    distinct_1: float
    """Share of distinct words (Li et al. 2016, arXiv 1510.03055), of equally long excerpts."""
    distinct_2: float
    """Share of distinct pairs of words."""
    names_kept: float | None
    """Share of prompts with a named character whose name occurs again."""
    rare_words: float | None = None
    """Share of words that are not among the training text's 1,000 most frequent. This and what
    follows is None without a training text to compare with."""
    unknown_words: float | None = None
    """Share of words that do not occur in the sampled training text: mostly invented."""
    longest_copy: float | None = None
    """Median over stories of the longest run of tokens that occurs in the training text."""
    novel_5_grams: float | None = None
    """Mean share of five-token sequences that do not occur in the training text."""
    memorised: float | None = None
    """Share of stories that are copies: see `is_copy`."""


def generate_stories(
    model: GPT, tokenizer: Tokenizer, options: SamplingOptions
) -> list[GeneratedStory]:
    """A story for each of this project's prompts, with consecutive seeds."""
    requests = [
        StoryRequest(prompt, replace(options, seed=options.seed + index))
        for index, (_, prompt) in enumerate(PROMPTS)
    ]
    rows = _ROWS[model.token_embedding.weight.device.type]
    stories = {}
    for story, _ in Storyteller(model, tokenizer).generate_all(requests, rows):
        if story.ended is not None:
            stories[story.request] = GeneratedStory(
                story.request.prompt, story.text, story.ended == "end of text"
            )
    return [
        GeneratedStory(stories[request].prompt, stories[request].text, stories[request].ended, name)
        for request, (name, _) in zip(requests, PROMPTS, strict=True)
    ]


def is_copy(overlap: Overlap) -> bool:
    """Whether a story counts as memorised.

    It contains a run of 64 tokens of the training text, or one of at least 24 that is half of it.
    Formulas such as "Once upon a time, there was a little girl named Lily. She loved to" are
    shorter.
    """
    long_enough = overlap.longest >= _SHORTEST_COPY and overlap.share >= COPIED_SHARE
    return overlap.longest >= COPIED_TOKENS or long_enough


def describe(stories: Sequence[GeneratedStory]) -> StoryStatistics:
    """The statistics that need no training text, of at least one story."""
    words = _words(stories)
    ends = [story.ended for story in stories if story.ended is not None]
    kept = [
        re.search(rf"\b{story.name}\b", story.text) is not None for story in stories if story.name
    ]
    return StoryStatistics(
        stories=len(stories),
        ended=_mean(ends) if ends else None,
        words=_mean([len(each) for each in words]),
        repetition=_mean([_repeated(each, 4) for each in words]),
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        names_kept=_mean(kept) if kept else None,
    )


def compare(
    statistics: StoryStatistics,
    stories: Sequence[GeneratedStory],
    shared: Sequence[Overlap],
    frequent: Sequence[str],
) -> StoryStatistics:
    """Adds what compares stories with the training text: overlaps, and its words by frequency."""
    known, common = set(frequent), set(frequent[:1000])
    everything = [word for each in _words(stories) for word in each]
    return replace(
        statistics,
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
    """Share of a text's n-grams that occurred in it before."""
    grams = _grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(stories: Sequence[Sequence[str]], n: int, length: int = 60) -> float:
    """Share of distinct n-grams among all of the first `length` words of each story.

    Of excerpts, because the share falls as a text grows.
    """
    grams = [gram for words in stories for gram in _grams(words[:length], n)]
    return len(set(grams)) / len(grams) if grams else 0.0
