"""Statistics of prepared data: story lengths, vocabulary use, example stories."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.data.manifest import Manifest
from slm.data.tokenizer import Tokenizer
from slm.data.verification import read_ids


@dataclass(frozen=True)
class SplitStatistics:
    """The result of one pass over a token file."""

    counts: npt.NDArray[np.int64]
    """How often each id occurs, (n_vocab,)."""
    ends: npt.NDArray[np.int64]
    """Position of each story's end-of-text, (stories,)."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each story, with its request and end-of-text, (stories,)."""
        return np.diff(self.ends, prepend=-1)

    @property
    def ids_used(self) -> int:
        """The number of ids that occur."""
        return int(np.count_nonzero(self.counts))

    def most_frequent_for(self, share: float) -> int:
        """How many of the most frequent ids make up `share` of all tokens."""
        cumulative = np.cumsum(np.sort(self.counts)[::-1])
        return int(np.searchsorted(cumulative, share * cumulative[-1])) + 1

    def fitting(self, block_size: int) -> float:
        """The share of stories that fit into a context of `block_size` tokens."""
        return float(np.mean(self.lengths <= block_size))


def count_split(folder: Path, manifest: Manifest, split: str) -> SplitStatistics:
    """Reads a token file once.

    Raises:
        UserError: It contains an id outside the vocabulary.
    """
    n_vocab = manifest.tokenizer["n_vocab"]
    counts = np.zeros(n_vocab, dtype=np.int64)
    ends: list[npt.NDArray[np.int64]] = []
    position = 0
    for ids in read_ids(folder, manifest, split):
        counts += np.bincount(ids, minlength=n_vocab)
        ends.append(np.flatnonzero(ids == n_vocab - 1) + position)
        position += len(ids)
    return SplitStatistics(counts, manifest.story_ends(ends))


def histogram(lengths: npt.NDArray[np.int64], bars: int = 12) -> list[tuple[int, int, int]]:
    """Histogram of story lengths: the first and last length and the stories of each bar.

    The width is round; the last bar contains all longer stories.
    """
    longest = max(1, int(np.quantile(lengths, 0.99)))
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(width for width in widths if width * bars >= longest)
    starts = list(range(1, max(2, longest + 1), width))
    stops = [start + width - 1 for start in starts]
    stops[-1] = max(stops[-1], int(lengths.max()))
    return [
        (start, stop, int(np.count_nonzero((lengths >= start) & (lengths <= stop))))
        for start, stop in zip(starts, stops, strict=True)
    ]


def examples(
    folder: Path, manifest: Manifest, split: str, ends: npt.NDArray[np.int64], seed: int, count: int
) -> list[str]:
    """Random stories of a split, determined by the seed."""
    tokenizer = manifest.make_tokenizer(folder)
    ids = np.memmap(Manifest.path(folder, split), manifest.dtype, mode="r")
    drawn = random.Random(seed).sample(range(len(ends)), min(count, len(ends)))
    stories = (ids[0 if i == 0 else ends[i - 1] + 1 : ends[i]] for i in drawn)
    return ["".join(_texts(story, tokenizer)) for story in stories]


def _texts(story: npt.NDArray[Any], tokenizer: Tokenizer) -> Iterator[str]:
    """A story's text, after its request if it has one."""
    *request, text = np.split(story, np.flatnonzero(story == tokenizer.end_of_text))
    if request:
        yield f"[requested:{tokenizer.decode(request[-1])}]\n"
    yield tokenizer.decode(text)
