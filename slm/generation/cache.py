"""KV cache: keys and values of the tokens already read, so that a new token costs one position.

Shape suffixes: B batch (sequences), H heads, S slots, D head size, T positions of this pass, G
sequences times heads (B H).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.model.config import GPTConfig

SLOTS = 64
"""The number of slots that are read is a multiple of this: a row's sums then run in the same order
however long the other sequences are, so that a story does not depend, not even by rounding, on
its batch."""


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class CacheView:
    """The part of a cache that one pass of the network reads and writes.

    Slot s of a row contains position s of its sequence. Slots after a row's end contain leftovers
    of earlier passes; the mask hides them, and the row's next tokens overwrite them.
    """

    positions: Tensor
    """Positions of the tokens of this pass, int64: (T,) if equal in all rows, else (B, T)."""
    mask: Tensor
    """0 where a query may attend and -inf elsewhere, (G or 1, T, S)."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, for the rows of this pass: (B, H, slots, D)."""
    slot: int | None
    """The slot of the first token of the pass, if it is the same in every row."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Stores keys and values, and attends to all positions up to each query's own.

        By explicit matrix products: the result for a row depends on this row only, which torch's
        attention kernels do not guarantee. `layer` is the block's index; all else is (B, H, T, D).
        """
        B, H, T, D = queries.shape
        stored = self.layers[layer]
        for stored_BHSD, new_BHTD in zip(stored, (keys, values), strict=True):
            if self.slot is not None:
                stored_BHSD.narrow(2, self.slot, T).copy_(new_BHTD)
            else:
                rows_B1 = torch.arange(B, device=new_BHTD.device)[:, None]
                new_BTHD = new_BHTD.transpose(1, 2).to(stored_BHSD.dtype)
                stored_BHSD[rows_B1, :, self.positions] = new_BTHD
        S = self.mask.size(-1)
        keys_GSD, values_GSD = (part.flatten(0, 1).narrow(1, 0, S) for part in stored)
        queries_GTD = queries.reshape(B * H, T, D).to(keys_GSD.dtype)
        scores_GTS = torch.baddbmm(
            self.mask, queries_GTD, keys_GSD.transpose(1, 2), alpha=1 / math.sqrt(D)
        )
        return torch.bmm(scores_GTS.softmax(dim=-1), values_GSD).view(B, H, T, D)


@dataclass(frozen=True)
class StaticCache:
    """The whole memory of a cache."""

    mask: Tensor
    """For a query at each position 0 at the slots up to its own, -inf after it: (slots, slots)."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer: (batch size, H, slots, D)."""


class KVCache:
    """Memory for the keys and values of up to `batch_size` sequences of up to `block_size` tokens.

    Attributes:
        lengths: How many positions each row contains.
        layers: Keys and values of each layer: (batch size, H, slots, D).
        device: Where they are.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        slots = round_up(config.block_size, SLOTS)
        shape = (batch_size, config.n_head, slots, config.n_embd // config.n_head)
        # Zeros, because a weight of 0 times a leftover NaN would be NaN.
        self.layers = [
            (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(config.n_layer)
        ]
        self.device = torch.device(device)
        self._n_head = config.n_head
        self._block_size = config.block_size
        self._slots = torch.arange(slots, device=device)
        future_SS = torch.ones(slots, slots, dtype=torch.bool, device=device).triu(1)
        self._mask_SS = torch.zeros(slots, slots, dtype=dtype, device=device)
        self._mask_SS.masked_fill_(future_SS, float("-inf"))
        self.lengths = [0] * batch_size
        self._parts: dict[tuple[int, int], list[Tensor]] = {}

    def grow(self, first: int, count: int, T: int) -> CacheView:
        """Makes room for T more tokens in each of the rows `first` … `first + count - 1`.

        Raises:
            ValueError: A row would contain more than `block_size` tokens.
        """
        before = self.lengths[first : first + count]
        longest = max(before)
        if longest + T > self._block_size:
            raise ValueError(
                f"{longest} tokens and {T} more do not fit into a context of {self._block_size}"
            )
        self.lengths[first : first + count] = [length + T for length in before]
        layers = [(k[first : first + count], v[first : first + count]) for k, v in self.layers]
        S = round_up(longest + T, SLOTS)
        if min(before) == longest:
            positions_T = self._slots[longest : longest + T]
            mask_1TS = self._mask_SS[None, longest : longest + T, :S]
            return CacheView(positions_T, mask_1TS, layers, longest)
        starts_B1 = torch.tensor(before, device=self._slots.device)[:, None]
        positions_BT = starts_B1 + self._slots[:T]
        mask_BTS = self._mask_SS[positions_BT][:, :, :S]
        return CacheView(positions_BT, mask_BTS.repeat_interleave(self._n_head, 0), layers, None)

    def advance(self, count: int) -> None:
        """Counts a token that has been stored in each of the first rows.

        Raises:
            ValueError: A row would contain more than `block_size` tokens.
        """
        if max(self.lengths[:count]) == self._block_size:
            raise ValueError(f"one token more does not fit into a context of {self._block_size}")
        self.lengths[:count] = [length + 1 for length in self.lengths[:count]]

    def next_positions(self) -> list[int]:
        """Where each row's next token goes; the last position for rows that are full."""
        return [min(length, self._block_size - 1) for length in self.lengths]

    def slots(self, count: int) -> Tensor:
        """The numbers of the first slots."""
        return self._slots[:count]

    def parts(self, first: int, count: int) -> list[Tensor]:
        """Keys and values of each layer in turn, in some rows: the same memory at every call."""
        if (first, count) not in self._parts:
            rows = slice(first, first + count)
            self._parts[first, count] = [part[rows] for layer in self.layers for part in layer]
        return self._parts[first, count]

    def static_view(self) -> StaticCache:
        """All rows and slots: the same memory at every call, for graphs of fixed shapes."""
        for tensor in (self._mask_SS, *(part for layer in self.layers for part in layer)):
            torch._dynamo.mark_static_address(tensor)  # CUDA graphs write into them
        return StaticCache(self._mask_SS, self.layers)

    def shorten(self, first: int, lengths: Sequence[int]) -> None:
        """Discards the ends of rows from `first` on, such as the padding of shorter prompts."""
        self.lengths[first : first + len(lengths)] = lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Moves these rows, in ascending order, to the front; discards the others."""
        for row, old in enumerate(rows):
            if row != old:
                length = self.lengths[row] = self.lengths[old]
                for keys_BHSD, values_BHSD in self.layers:
                    keys_BHSD[row, :, :length] = keys_BHSD[old, :, :length]
                    values_BHSD[row, :, :length] = values_BHSD[old, :, :length]
        self.lengths[len(rows) :] = [0] * (len(self.lengths) - len(rows))
