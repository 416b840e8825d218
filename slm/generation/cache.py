"""Keys and values of the positions already read, so that a new token costs one position's work.

Shape suffixes: B rows (stories), H heads, S slots, D head size, T positions of this pass,
G rows times heads (B H).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.model.config import GPTConfig

_SLOTS = 64
"""Slots are looked at in multiples of this: a row's sums then run in the same order however long
its neighbours are, so that a story does not depend, not even by rounding, on its batch."""


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class CacheView:
    """A cache's part in one pass of the network.

    Slot s of a row holds the sequence's position s. Slots behind a row's end hold what an
    earlier pass has left there; the mask hides them, and the row's next tokens overwrite them.
    """

    positions: Tensor
    """Where the tokens of this pass stand in their sequences, int64: (T,) if that is the same in
    every row, else (B, T)."""
    mask: Tensor
    """0 where a query may look and -inf elsewhere, (G or 1, T, S)."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, for the rows of this pass: (B, H, slots, D)."""
    slot: int | None
    """Where the first token of the pass goes, if it is the same slot in every row."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Stores the keys and values of a pass, and lets its queries look at all up to their own.

        By matrix products, written out: the result for a row depends on nothing but this row,
        which torch's attention kernels do not promise.

        Args:
            layer: Index of the transformer block.
            queries: (B, H, T, D).
            keys: (B, H, T, D).
            values: (B, H, T, D).

        Returns:
            (B, H, T, D).
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
    """For a query at each position 0 at the slots up to its own, -inf behind: (slots, slots)."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer: (rows, H, slots, D)."""


class KVCache:
    """Memory for the keys and values of up to `rows` sequences of up to `block_size` tokens.

    Args:
        config: The model's shape.
        rows: How many sequences at once.
        dtype: Number format of keys, values and attention.
        device: Where they lie.

    Attributes:
        lengths: How many positions each row holds.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        slots = round_up(config.block_size, _SLOTS)
        shape = (rows, config.n_head, slots, config.n_embd // config.n_head)
        # Zeros, because a weight of 0 times a leftover NaN would be NaN.
        self._layers = [
            (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(config.n_layer)
        ]
        self._n_head = config.n_head
        self._block_size = config.block_size
        self._slots = torch.arange(slots, device=device)
        future_SS = torch.ones(slots, slots, dtype=torch.bool, device=device).triu(1)
        self._mask_SS = torch.zeros(slots, slots, dtype=dtype, device=device)
        self._mask_SS.masked_fill_(future_SS, float("-inf"))
        self.lengths = [0] * rows

    def grow(self, first: int, count: int, T: int) -> CacheView:
        """Makes room for T more tokens in each of the rows `first` … `first + count - 1`.

        Raises:
            ValueError: A row would hold more than `block_size` tokens.
        """
        before = self.lengths[first : first + count]
        longest = max(before)
        if longest + T > self._block_size:
            raise ValueError(
                f"{longest} tokens and {T} more do not fit into a context of {self._block_size}"
            )
        self.lengths[first : first + count] = [length + T for length in before]
        layers = [(k[first : first + count], v[first : first + count]) for k, v in self._layers]
        S = round_up(longest + T, _SLOTS)
        if min(before) == longest:
            positions_T = self._slots[longest : longest + T]
            mask_1TS = self._mask_SS[None, longest : longest + T, :S]
            return CacheView(positions_T, mask_1TS, layers, longest)
        starts_B1 = torch.tensor(before, device=self._slots.device)[:, None]
        positions_BT = starts_B1 + self._slots[:T]
        mask_BTS = self._mask_SS[positions_BT][:, :, :S]
        return CacheView(positions_BT, mask_BTS.repeat_interleave(self._n_head, 0), layers, None)

    def static_view(self) -> StaticCache:
        """Every row and slot: the same memory at every call, for graphs of fixed shapes."""
        for tensor in (self._mask_SS, *(part for layer in self._layers for part in layer)):
            torch._dynamo.mark_static_address(tensor)  # CUDA graphs write into them
        return StaticCache(self._mask_SS, self._layers)

    def shorten(self, first: int, lengths: Sequence[int]) -> None:
        """Forgets the ends of rows from `first` on, such as the padding of shorter prompts."""
        self.lengths[first : first + len(lengths)] = lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Moves these rows, in this order, to the front; forgets the others.

        Args:
            rows: Row numbers, ascending.
        """
        for row, old in enumerate(rows):
            if row != old:
                length = self.lengths[row] = self.lengths[old]
                for keys_BHSD, values_BHSD in self._layers:
                    keys_BHSD[row, :, :length] = keys_BHSD[old, :, :length]
                    values_BHSD[row, :, :length] = values_BHSD[old, :, :length]
        self.lengths[len(rows) :] = [0] * (len(self.lengths) - len(rows))
