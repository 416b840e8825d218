"""How much of a story stands word for word in the training text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, as multiplication modulo 2^64 wants it
_NOVEL = 5


@dataclass(frozen=True)
class Overlap:
    """What a story shares with the training text."""

    longest: int
    """Tokens of the longest run that the training text holds, too."""
    start: int
    """Where in the story it begins, in tokens."""
    tokens: int
    """Length of the story."""
    novel: float
    """Share of its sequences of five tokens that the training text does not hold."""

    @property
    def share(self) -> float:
        """The longest run as a share of the story."""
        return self.longest / self.tokens if self.tokens else 0.0


def overlaps(stories: Sequence[Sequence[int]], training: Iterable[Ids]) -> list[Overlap]:
    """Compares stories with the training text, in one pass over it.

    Sequences are compared by a polynomial hash modulo 2^64 (Karp & Rabin 1987). A run of n + 1
    tokens begins where one of n does, so after sequences of five every further length has only
    the few places of the last one to look at.

    Args:
        stories: Token ids.
        training: The training text's ids in blocks that share nothing: runs across their borders
            are found if each block begins with the last tokens of the one before.
    """
    hashes = _Hashes(stories)
    for block in training:
        ids = _as_digits(block)
        all_places: Ids = np.arange(max(0, len(ids) - _NOVEL + 1))
        for length, places, values in _growing(ids, all_places, np.full(len(all_places), len(ids))):
            hit = hashes.mark(length, values)
            if hit is None:
                break
            places[~hit] = -1
    return hashes.results()


def _as_digits(ids: Ids) -> Hashes:
    """Token ids as digits above zero, so that a sequence of zeros has a hash of its own."""
    return ids.astype(np.uint64) + np.uint64(1)


def _growing(ids: Hashes, places: Ids, ends: Ids) -> Iterator[tuple[int, Ids, Hashes]]:
    """The hashes of sequences that grow, five tokens long at first.

    Args:
        ids: Digits of a text.
        places: Where sequences begin. Whoever sets one to -1 ends that sequence.
        ends: Behind which place of the text each must not reach.

    Yields:
        The length, where sequences of this length begin, and their hashes.
    """
    values = np.zeros(len(places), dtype=np.uint64)
    length = 0
    while len(places):
        with np.errstate(over="ignore"):
            values = values * _BASE + ids[places + length]
        length += 1
        if length >= _NOVEL:
            yield length, places, values
        going_on = (places >= 0) & (places + length < ends)
        places, values, ends = places[going_on], values[going_on], ends[going_on]


class _Hashes:
    """The hashes of all sequences of some stories, and which of them have been found."""

    def __init__(self, stories: Sequence[Sequence[int]]) -> None:
        self._lengths = [len(story) for story in stories]
        self._ids = _as_digits(np.array([token for story in stories for token in story], np.int64))
        self._levels = self._grow()
        self._known: list[Hashes] = []
        self._found: list[npt.NDArray[np.bool_]] = []

    def _grow(self) -> Iterator[tuple[int, Ids, Hashes]]:
        ends = np.repeat(np.cumsum(self._lengths), self._lengths)
        places: Ids = np.arange(len(self._ids))
        fits = places + _NOVEL <= ends
        return _growing(self._ids, places[fits], ends[fits])

    def mark(self, length: int, values: Hashes) -> npt.NDArray[np.bool_] | None:
        """Notes which sequences of this length the values hold.

        Returns:
            Which values are among them; None if no story is as long as this.
        """
        index = length - _NOVEL
        if index == len(self._known):
            level = next(self._levels, None)
            if level is None:
                return None
            self._known.append(np.unique(level[2]))
            self._found.append(np.zeros(len(self._known[-1]), dtype=bool))
        known = self._known[index]
        place = np.minimum(np.searchsorted(known, values), len(known) - 1)
        hit = known[place] == values
        self._found[index][place[hit]] = True
        return np.asarray(hit)

    def results(self) -> list[Overlap]:
        """The longest run and the share of novel sequences of each story."""
        count = len(self._lengths)
        begins = np.cumsum([0, *self._lengths[:-1]])
        owner = np.repeat(np.arange(count), self._lengths)
        longest, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
        novel = np.ones(count)
        for (length, places, values), known, marked in zip(
            self._grow(), self._known, self._found, strict=False
        ):
            found = marked[np.searchsorted(known, values)]
            if length == _NOVEL:
                all_of = np.bincount(owner[places], minlength=count)
                old = np.bincount(owner[places[found]], minlength=count)
                novel = 1 - old / np.maximum(1, all_of)
            stories, first = np.unique(owner[places[found]], return_index=True)
            longest[stories] = length
            start[stories] = places[found][first] - begins[stories]
        return [
            Overlap(int(longest[n]), int(start[n]), self._lengths[n], float(novel[n]))
            for n in range(count)
        ]
