"""Requests: a few words that a story is to contain, put in front of it.

A request is stored as two more stories, an empty one that announces it and the words:

    <|endoftext|> dragon cake brave<|endoftext|>Once upon a time … <|endoftext|>

A space precedes each word, so that its tokens are the same as within the story.

Data with requests contain no other empty stories, so ids alone show where requests are. A plain
story still follows the end-of-text of another one. Eldan & Li 2023 (arXiv 2305.07759), section 5,
train on such instructions, made with a larger model's help; here the words come from the story.

Shape suffixes: B windows, N positions.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Request = Literal["words"]

SHARE = 0.5
"""The share of stories with a request."""
LONGEST = 64
"""Tokens that a request has at most, with its two end-of-texts: at worst a letter a token."""
_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,12}(?![\w'’-])")
"""In lower case, which leaves out names and the beginnings of sentences."""
_FUNCTION_WORDS_TEXT = """
about above across after again against ago all almost alone along already also although always
among and another any anyone anything anyway are around asked away back became because become been
before began behind being below beside best better between both but bye came can cannot come could
did does doing don done down during each either else end enough even ever every everyone
everything except far felt few finally first for from full gave get gets getting give go goes
going gone good got had happened has have having hello her here hers herself hey him himself his
how however inside instead into its itself just keep kept knew know last later least left less let
lets like little long look looked looking lot lots made make makes making many may maybe might
mine more most much must myself near need needed never new next nobody none nor not nothing now
off often okay old once one ones only onto other others our ours out outside over own perhaps
please put quite rather really replied right said same saw say says second see seen several shall
she should since some someone something soon still such sure take taken takes tell than thank
thanks that the their theirs them themselves then there these they thing things think this those
though thought three through thus till time times told too took toward towards tried try trying
two under until upon use used using very want wanted wants was way well went were what whatever
when where which while who whole whose why will with within without would yes yet you your yours
yourself
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())


def request_words(story: str) -> list[str]:
    """Two to four content words of a story, a pure function of its text; none if it has only one.

    The words, their number and their order are as good as random: a BLAKE2b hash decides.
    """
    content = set(_WORD.findall(story)) - _FUNCTION_WORDS
    key = _hash("", story)
    chosen = sorted(content, key=lambda word: _hash(word, key))[: 2 + key[0] % 3]
    return chosen if len(chosen) > 1 else []


def with_request(story: str) -> list[str]:
    """A story, after its request if it is one of the share that get one, as texts to encode."""
    asked = int.from_bytes(_hash("request", story)[:8], "little") < SHARE * 2**64
    words = request_words(story) if asked else []
    return ["", request_text(words), story] if words else [story]


def request_text(words: Sequence[str]) -> str:
    """The text of a request."""
    return "".join(f" {word.lower()}" for word in words)


def split_words(text: str) -> tuple[str, ...]:
    """The words of "dragon, cake, brave", separated by commas or else by white space."""
    parts = text.split(",") if "," in text else text.split()
    return tuple(word for part in parts if (word := " ".join(part.split())))


def _hash(what: str, key: str | bytes) -> bytes:
    data = key.encode() if isinstance(key, str) else key
    return blake2b(data, digest_size=16, person=what.encode()).digest()


def story_ends(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of the positions of all end-of-texts from a file's beginning on, those that end a story."""
    announces = np.diff(ends, prepend=-1) == 1
    closes = np.concatenate([[False], announces[:-1]])
    real: npt.NDArray[np.int64] = ends[~(announces | closes)]
    return real


def request_mask(ids: npt.NDArray[Any], end_of_text: int) -> npt.NDArray[np.bool_]:
    """Which tokens of windows (B, N) belong to a request, its two end-of-texts included.

    The first `LONGEST` positions do not show it: their request may begin before the window.
    """
    ends_BN = ids == end_of_text
    announces_BN = np.zeros_like(ends_BN)
    announces_BN[:, 1:] = ends_BN[:, 1:] & ends_BN[:, :-1]
    # For each position, that of the last end-of-text before it.
    positions_BN = np.where(ends_BN, np.arange(ids.shape[1]), 0)
    last_BN = np.maximum.accumulate(positions_BN, axis=1)
    last_BN = np.concatenate([np.zeros_like(last_BN[:, :1]), last_BN[:, :-1]], axis=1)
    mask_BN: npt.NDArray[np.bool_] = announces_BN | np.take_along_axis(
        announces_BN, last_BN, axis=1
    )
    return mask_BN
