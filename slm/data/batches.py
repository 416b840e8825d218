"""Batches of token windows: random or shuffled for training, consecutive for evaluation.

Batches are functions of an index: another process, or a resumed run, gets the same ones.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from slm.data.requests import LONGEST, request_mask

IGNORED = -100
"""Target of a position without loss: `F.cross_entropy`'s `ignore_index`."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64; a target is the id that follows its input."""


def random_words(seed: int, start: int, count: int, stream: int = 0) -> npt.NDArray[np.uint64]:
    """Words `start` to `start + count - 1` of an endless random sequence, (count,) uint64.

    The sequence is Philox-4x64 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"),
    which computes any block of four words from the key and the block's index: it has no state.
    """
    key = seed + (stream << 64)  # 128 bits
    generator = np.random.Philox(key=key, counter=start // 4)
    return generator.random_raw(start % 4 + count)[start % 4 :]


@dataclass(eq=False)
class TokenFile:
    """The ids of a `.bin` file.

    Each process opens the file once, so a run keeps its data even if they are prepared again
    meanwhile. The file is mapped for each batch: a long-lived map grows the resident memory, and
    one in an attribute would be pickled, whole, into every worker.
    """

    path: Path
    dtype: np.dtype[Any]

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")

    def map(self) -> npt.NDArray[Any]:
        """The ids, memory-mapped, (tokens,)."""
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, self.dtype)

    def __len__(self) -> int:
        return len(self.map())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype}

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()


@dataclass(eq=False)
class TrainingWindows(Dataset[Batch], ABC):
    """Endless training batches, each a pure function of its index.

    Batch k consists of samples `first_sample` + k B to `first_sample` + k B + B - 1. The seed and a
    sample's index determine its window, so samples do not depend on the batch size, on gradient
    accumulation or on the number of processes.

    Raises:
        ValueError: The file is shorter than one window and its targets.
    """

    tokens: TokenFile
    block_size: int
    """T, tokens per window."""
    batch_size: int
    """B, windows per batch."""
    seed: int
    first_sample: int = 0
    """Number of samples that a resumed run has trained on."""
    request_end: int | None = None
    """End-of-text, if stories follow requests, whose tokens then get the target `IGNORED`."""

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.block_size:
            path, length = self.tokens.path, self.block_size
            raise ValueError(f"{path} is shorter than a window of {length} + 1 tokens")

    @abstractmethod
    def _starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """The first token of samples `first` to `first + count - 1`, (count,)."""

    def __getitem__(self, index: int) -> Batch:
        starts = self._starts(self.first_sample + index * self.batch_size, self.batch_size)
        before = 0 if self.request_end is None else LONGEST
        # Before a file's beginning its first token is repeated, so that an end-of-text announces a
        # request there, too.
        positions = np.maximum(starts[:, None] + np.arange(-before, self.block_size + 1), 0)
        ids = self.tokens.map()[positions].astype(np.int64)
        inputs, targets = ids[:, before:-1].copy(), ids[:, before + 1 :].copy()
        if self.request_end is not None:
            targets[request_mask(ids, self.request_end)[:, before + 1 :]] = IGNORED
        return torch.from_numpy(inputs), torch.from_numpy(targets)


class RandomWindows(TrainingWindows):
    """Windows at random offsets: word i of the random sequence, modulo the number of offsets."""

    def _starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        offsets = np.uint64(len(self.tokens) - self.block_size)
        return (random_words(self.seed, first, count) % offsets).astype(np.int64)


class EpochWindows(TrainingWindows):
    """Every window once before any is repeated.

    Each epoch cuts the token file into consecutive windows, beginning at a random token, and
    shuffles them. Sample i is window i mod n of epoch i // n, where n is the number of windows per
    epoch; the seed and the epoch's number determine the order.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        length = len(self.tokens)
        self.windows = max(1, length // self.block_size - 1)
        self.shifts = min(self.block_size, length - self.windows * self.block_size)

    def _starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        samples = (divmod(sample, self.windows) for sample in range(first, first + count))
        shape = (self.windows, self.block_size, self.shifts)
        return np.array([_shuffled(self.seed, epoch, *shape)[index] for epoch, index in samples])


@lru_cache(maxsize=1)
def _shuffled(
    seed: int, epoch: int, windows: int, block_size: int, shifts: int
) -> npt.NDArray[np.int64]:
    """The first token of an epoch's windows, in shuffled order, (windows,)."""
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return random.integers(shifts) + random.permutation(windows) * block_size


@dataclass(eq=False)
class EveryNth(Sampler[int]):
    """The endless indices first, first + step, first + 2 step, …: one process's share."""

    first: int = 0
    step: int = 1

    def __iter__(self) -> Iterator[int]:
        return count(self.first, self.step)


@dataclass(eq=False)
class ConsecutiveWindows(Dataset[Batch]):
    """Evaluation batches: the whole file once, every token but the first predicted once.

    Window k contains inputs k T to k T + T - 1. All batches have the same shape; positions of the
    last one beyond the end of the file have the target `IGNORED`.

    Raises:
        ValueError: The file contains fewer than two tokens.
    """

    tokens: TokenFile
    block_size: int
    """T, tokens per window."""
    batch_size: int
    """B, windows per batch."""
    rank: int = 0
    """Index of this process; it takes batches rank, rank + world_size, …"""
    world_size: int = 1
    """Number of processes. Each gets the same number of batches."""

    def __post_init__(self) -> None:
        self.targets = len(self.tokens) - 1
        if self.targets < 1:
            raise ValueError(f"{self.tokens.path} contains fewer than two tokens")

    def __len__(self) -> int:
        return -(-self.targets // (self.block_size * self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = self.batch_size * self.block_size
        start = (index * self.world_size + self.rank) * size
        ids = torch.from_numpy(self.tokens.map()[start : start + size + 1].astype(np.int64))
        missing = (0, size - len(ids[1:]))
        inputs = functional.pad(ids[:-1], missing)
        targets = functional.pad(ids[1:], missing, value=IGNORED)
        return inputs.view(-1, self.block_size), targets.view(-1, self.block_size)
