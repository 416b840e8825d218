"""Batches of token windows: random or shuffled ones to train on, consecutive ones to evaluate on.

Both are functions of an index: another process, or a resumed run, gets the same batches.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

IGNORED = -100
"""Target of a position that does not count: `F.cross_entropy`'s `ignore_index`."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64; a target is the id that follows its input."""


def random_words(seed: int, start: int, count: int, stream: int = 0) -> npt.NDArray[np.uint64]:
    """Words `start` to `start + count - 1` of an endless random sequence, (count,) uint64.

    The sequence is Philox-4x64 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"),
    which computes any block of four words from the key and the block's number: no state is kept.
    """
    key = seed + (stream << 64)  # 128 bits
    generator = np.random.Philox(key=key, counter=start // 4)
    return generator.random_raw(start % 4 + count)[start % 4 :]


class TokenFile:
    """The ids of a `.bin` file.

    The file is opened once in each process, so that a run keeps its data if they are prepared again
    meanwhile. It is mapped for each batch: a long-lived map grows the resident memory, and one in
    an attribute would be pickled, whole, into every worker.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        self._file: BinaryIO | None = None

    def map(self) -> npt.NDArray[Any]:
        """The ids, memory-mapped, (tokens,)."""
        if self._file is None:
            self._file = self.path.open("rb")
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, self.dtype)

    def __len__(self) -> int:
        return len(self.map())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def gather_windows(tokens: TokenFile, starts: npt.NDArray[np.int64], block_size: int) -> Batch:
    """The windows that begin at the tokens `starts`, (B,), and their targets."""
    window = np.arange(block_size + 1)
    ids = torch.from_numpy(tokens.map()[starts[:, None] + window].astype(np.int64))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class TrainingWindows(Dataset[Batch], ABC):
    """Endless training batches, each a pure function of its index.

    Batch k consists of samples `first_sample` + k B to `first_sample` + k B + B - 1. A sample's
    number and the seed determine its window, so samples do not depend on the batch size, on
    accumulation or on the number of processes.

    Args:
        tokens: The token file.
        block_size: T, tokens per window.
        batch_size: B, windows per batch.
        seed: Key of the random order.
        first_sample: Number of samples that a resumed run has trained on.

    Raises:
        ValueError: The file is shorter than one window and its targets.
    """

    def __init__(
        self,
        tokens: TokenFile,
        block_size: int,
        batch_size: int,
        seed: int,
        first_sample: int = 0,
    ) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.first_sample = first_sample
        if len(tokens) <= block_size:
            raise ValueError(f"{tokens.path} is shorter than a window of {block_size} + 1 tokens")

    @abstractmethod
    def starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """The first token of samples `first` to `first` + `count` - 1: (count,)."""

    def __getitem__(self, index: int) -> Batch:
        first = self.first_sample + index * self.batch_size
        return gather_windows(self.tokens, self.starts(first, self.batch_size), self.block_size)


class RandomWindows(TrainingWindows):
    """Windows at random offsets: word i of the random sequence, modulo their number."""

    def starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """The first token of samples `first` to `first` + `count` - 1: (count,)."""
        offsets = np.uint64(len(self.tokens) - self.block_size)
        return (random_words(self.seed, first, count) % offsets).astype(np.int64)


class EpochWindows(TrainingWindows):
    """Every window once before any is repeated.

    Each epoch cuts the token file into consecutive windows from a random first token on, and
    shuffles them. Sample i is window i mod n of epoch i // n, where n is the number of windows in
    an epoch; the seed and its number determine an epoch's order.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        length = len(self.tokens)
        self.windows = max(1, length // self.block_size - 1)
        self.shifts = min(self.block_size, length - self.windows * self.block_size)
        self._epoch = -1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epoch": -1, "_starts": None}

    def _start(self, sample: int) -> int:
        """The first token of a sample."""
        epoch, position = divmod(sample, self.windows)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            shift = random.integers(self.shifts)
            self._epoch = epoch
            self._starts = shift + random.permutation(self.windows) * self.block_size
        return int(self._starts[position])

    def starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """The first token of samples `first` to `first` + `count` - 1: (count,)."""
        return np.array([self._start(first + k) for k in range(count)])


class EveryNth(Sampler[int]):
    """The endless indices first, first + step, first + 2 step, …: one process's share."""

    def __init__(self, first: int = 0, step: int = 1) -> None:
        self.first = first
        self.step = step

    def __iter__(self) -> Iterator[int]:
        return count(self.first, self.step)


class ConsecutiveWindows(Dataset[Batch]):
    """Evaluation batches: the whole file once, every token but the first predicted once.

    Window k contains inputs k T to k T + T - 1. All batches have the same shape; the part of the
    last one that the file cannot fill has targets `IGNORED`.

    Args:
        tokens: The token file.
        block_size: T, tokens per window.
        batch_size: B, windows per batch.
        rank: This process; it takes batches rank, rank + world_size, …
        world_size: Number of processes. Each gets the same number of batches.

    Raises:
        ValueError: The file contains fewer than two tokens.
    """

    def __init__(
        self,
        tokens: TokenFile,
        block_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.targets = len(tokens) - 1
        if self.targets < 1:
            raise ValueError(f"{tokens.path} contains fewer than two tokens")

    def __len__(self) -> int:
        return -(-self.targets // (self.block_size * self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = self.batch_size * self.block_size
        start = (index * self.world_size + self.rank) * size
        ids = torch.from_numpy(self.tokens.map()[start : start + size + 1].astype(np.int64))
        inputs = torch.zeros(size, dtype=torch.int64)
        targets = torch.full((size,), IGNORED)
        length = max(0, len(ids) - 1)
        inputs[:length] = ids[:length]
        targets[:length] = ids[1:]
        shape = (self.batch_size, self.block_size)
        return inputs.view(shape), targets.view(shape)
