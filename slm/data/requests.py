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
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Request = Literal["words"]

SHARE = 0.5
"""The share of stories with a request."""
LONGEST = 64
"""Tokens that a request has at most, with its two end-of-texts: at worst one token per letter."""
_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,12}(?![\w'’-])")
"""In lower case, which leaves out names and the beginnings of sentences."""
_LEFT_OUT_TEXT = """
about above across after again against ago agreed all almost alone along already also although
always among and another any anymore anyone anything anyway are around asked away back bad
beautiful became because become been before began behind being below beside best better between
big both boy boys but bye called came can cannot careful come could cried dad daddy day days
decided did does doing don done down during each eat either else end enough even ever every
everyone everything except excited far fast feel feeling felt few finally find first for found
friend friends from full fun gave get gets getting girl girls give go goes going gone good got
great had happened happily happy hard has have having heard hello help helped helping her here
hers herself hey him himself his home how however hug hugged hurt idea important inside instead
into its itself just keep kept kids kind knew know lady last later laughed learn learned least
left less let lets like liked little live lived long look looked looking lot lots love loved made
make makes making man many may maybe met might mine mom mommy moral more morning most much must
myself name named names near need needed never new next nice night nobody nodded none nor not
nothing now off often okay old once one ones only onto opened other others our ours out outside
over own people perhaps picked place play played playing please pretty proud put quite ran rather
really replied right run sad said same sat saw say saying says scared second see seemed seen
several shall she should show showed since small smile smiled some someone something soon sorry
special start started stay still story such sure surprised take taken takes talk talked tell than
thank thanked thanks that the their theirs them themselves then there these they thing things
think this those though thought three through thus till time times today together told tomorrow
too took toward towards tried try trying turned two under until upon use used using very wait walk
walked want wanted wants was watch watched way well went were what whatever when where which while
who whole whose why will with within without woman work worked would yes yet you your yours
yourself
"""
_LEFT_OUT = frozenset(_LEFT_OUT_TEXT.split())
"""Function words, and what occurs in every other children's story anyway."""


def request_words(story: str) -> list[str]:
    """Two to four content words of a story, a pure function of its text; none if fewer than two.

    The number of words and their order are as good as random: a BLAKE2b hash decides. So are the
    words, except that the more often one occurs, the likelier it is chosen: weighted sampling
    without replacement (Efraimidis & Spirakis 2006), with the counts as weights.
    """
    counts = Counter(word for word in _WORD.findall(story) if word not in _LEFT_OUT)
    key = _hash("", story)
    ranks = {word: _uniform(_hash(word, key)) ** (1 / count) for word, count in counts.items()}
    chosen = sorted(ranks, key=lambda word: (-ranks[word], word))[: 2 + key[0] % 3]
    return chosen if len(chosen) > 1 else []


def with_request(story: str) -> list[str]:
    """A story, after its request if it is one of the share that get one, as texts to encode."""
    words = request_words(story) if _uniform(_hash("request", story)) < SHARE else []
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


def _uniform(digest: bytes) -> float:
    return int.from_bytes(digest[:8], "little") / 2**64


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
