"""Muon for the hidden matrices and AdamW for everything else, as one optimizer."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Two optimizers that Lightning, a schedule and a checkpoint see as one.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a matrix's gradient,
    after momentum, by the nearest orthogonal matrix, so that every direction is learnt at the same
    rate. It is meant for matrices between hidden states; embeddings, head and vectors are AdamW's.

    The parts share this optimizer's groups and state. In distributed training every process
    orthogonalises the same averaged gradient, so nothing more has to be exchanged.

    Args:
        muon: The groups of hidden matrices, with `lr`, `momentum` and `weight_decay` each.
        adamw: The other groups, with `lr`, `betas` and `weight_decay` each.
        fused: Whether AdamW uses torch's fused kernel.
    """

    def __init__(
        self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]], *, fused: bool
    ) -> None:
        # The updates of a matrix with more rows than columns are scaled by √(rows / columns).
        self.parts: list[Optimizer] = [
            Muon(muon, adjust_lr_fn="original"),
            AdamW(adamw, fused=fused),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both parts."""
        super().load_state_dict(state_dict)
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with each part; returns the loss that the closure computes, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def hidden_matrices(blocks: nn.Module) -> list[Tensor]:
    """The parameters that Muon is meant for: the matrices of the transformer's blocks."""
    return [parameter for parameter in blocks.parameters() if parameter.dim() == 2]
