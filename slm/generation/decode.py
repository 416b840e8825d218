"""Decode passes: one token of each sequence, in the ways in which torch can run it.

Shape suffixes: B batch (sequences), V vocabulary, G sequences times heads, T, S as in `cache`.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slm.generation.cache import CacheView, KVCache, StaticCache
from slm.model.gpt import GPT


class PlainDecode:
    """The decode pass operator by operator.

    Args:
        model: The network, in evaluation mode.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model

    def rows(self, batch_size: int) -> int:
        """Rows that a cache for so many sequences must have."""
        return batch_size

    def __call__(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Reads one token in each of the first rows of a cache.

        Returns:
            The logits of the next ones, (B, V).
        """
        tokens_B1 = torch.tensor([tokens], device=cache.device).T
        view = cache.grow(0, len(tokens), 1)
        return self.model.unembed(self.model.hidden(tokens_B1, view)[:, 0])


class GraphDecode(PlainDecode):
    """The decode pass through torch.compile with CUDA graphs: one launch instead of hundreds.

    Its shapes are fixed, so all rows of the cache take part. Those without a token to read write
    into a slot that is overwritten before it is read.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self._slots: tuple[KVCache, StaticCache] | None = None

    def __call__(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """As in `PlainDecode`."""
        tokens_B1 = torch.tensor(
            [[*tokens, *[0] * (len(cache.lengths) - len(tokens))]], device=cache.device
        ).T
        positions_B1 = torch.tensor([cache.next_positions()], device=cache.device).T
        if self._slots and self._slots[0] is cache:
            # Checking at every token whether the graph fits would cost a tenth of the time; nothing
            # that it checks changes during the life of a cache.
            with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
                logits_BV = _graph()(self.model, tokens_B1, positions_B1, self._slots[1])
        else:
            slots = cache.static_view()
            # A graph for each model and batch size; an error rather than silently uncompiled.
            with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
                logits_BV = _graph()(self.model, tokens_B1, positions_B1, slots)
            self._slots = cache, slots
        cache.advance(len(tokens))
        # The next pass would overwrite the output of a CUDA graph.
        return logits_BV[: len(tokens)].clone()


@functools.cache
def _graph() -> Callable[[GPT, Tensor, Tensor, StaticCache], Tensor]:
    """`PlainDecode` over all rows and slots, compiled when it is first called with some shapes."""

    def run(model: GPT, tokens: Tensor, positions: Tensor, slots: StaticCache) -> Tensor:
        mask_GTS = slots.mask[positions].repeat_interleave(model.config.n_head, 0)
        view = CacheView(positions, mask_GTS, slots.layers, None)
        return model.unembed(model.hidden(tokens, view)[:, 0])

    return torch.compile(run, dynamic=False, mode="reduce-overhead")
