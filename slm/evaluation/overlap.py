"""How much of a story occurs word for word in the training text."""

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
    """Tokens of the longest run that occurs in the training text."""
    start: int
    """Its position in the story, in tokens."""
    tokens: int
    """Length of the story."""
    novel: float
    """Share of its sequences of five tokens that do not occur in the training text."""

    @property
    def share(self) -> float:
        """The longest run as a share of the story."""
        return self.longest / self.tokens if self.tokens else 0.0


def overlaps(stories: Sequence[Sequence[int]], training: Iterable[Ids]) -> list[Overlap]:
    """Compares stories with the training text, in one pass over it.

    Sequences are compared by a polynomial hash modulo 2^64 (Karp & Rabin 1987). A run of n + 1
    tokens begins where one of n does, so after sequences of five every further length examines only
    the few positions of the last one.

    Args:
        stories: Token ids.
        training: The training text's ids in blocks. To find runs across their borders, each block
            must begin with the last tokens of the previous one.
    """
    hashes = _Hashes(stories)
    for block in training:
        ids = _as_digits(block)
        all_positions: Ids = np.arange(max(0, len(ids) - _NOVEL + 1))
        for length, positions, values in _growing(
            ids, all_positions, np.full(len(all_positions), len(ids))
        ):
            hit = hashes.mark(length, values)
            if hit is None:
                break
            positions[~hit] = -1
    return hashes.results()


def _as_digits(ids: Ids) -> Hashes:
    """Token ids as digits above zero, so that a sequence of zeros has a hash."""
    return ids.astype(np.uint64) + np.uint64(1)


def _growing(ids: Hashes, positions: Ids, ends: Ids) -> Iterator[tuple[int, Ids, Hashes]]:
    """The hashes of growing sequences, five tokens long at first.

    Args:
        ids: Digits of a text.
        positions: Positions where sequences begin. The caller sets one to -1 to end that sequence.
        ends: The position that each must not pass.

    Yields:
        The length, the positions of sequences of this length, and their hashes.
    """
    values = np.zeros(len(positions), dtype=np.uint64)
    length = 0
    while len(positions):
        with np.errstate(over="ignore"):
            values = values * _BASE + ids[positions + length]
        length += 1
        if length >= _NOVEL:
            yield length, positions, values
        alive = (positions >= 0) & (positions + length < ends)
        positions, values, ends = positions[alive], values[alive], ends[alive]


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
        positions: Ids = np.arange(len(self._ids))
        fits = positions + _NOVEL <= ends
        return _growing(self._ids, positions[fits], ends[fits])

    def mark(self, length: int, values: Hashes) -> npt.NDArray[np.bool_] | None:
        """Marks the sequences of this length that are among the values.

        Returns:
            Which values were found; None if no story is as long as this.
        """
        index = length - _NOVEL
        if index == len(self._known):
            level = next(self._levels, None)
            if level is None:
                return None
            self._known.append(np.unique(level[2]))
            self._found.append(np.zeros(len(self._known[-1]), dtype=bool))
        known = self._known[index]
        position = np.minimum(np.searchsorted(known, values), len(known) - 1)
        hit = known[position] == values
        self._found[index][position[hit]] = True
        return np.asarray(hit)

    def results(self) -> list[Overlap]:
        """The longest run and the share of novel sequences of each story."""
        count = len(self._lengths)
        begins = np.cumsum([0, *self._lengths[:-1]])
        owner = np.repeat(np.arange(count), self._lengths)
        longest, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
        novel = np.ones(count)
        for (length, positions, values), known, marked in zip(
            self._grow(), self._known, self._found, strict=False
        ):
            found = marked[np.searchsorted(known, values)]
            if length == _NOVEL:
                all_of = np.bincount(owner[positions], minlength=count)
                old = np.bincount(owner[positions[found]], minlength=count)
                novel = 1 - old / np.maximum(1, all_of)
            stories, first = np.unique(owner[positions[found]], return_index=True)
            longest[stories] = length
            start[stories] = positions[found][first] - begins[stories]
        return [
            Overlap(int(longest[n]), int(start[n]), self._lengths[n], float(novel[n]))
            for n in range(count)
        ]
