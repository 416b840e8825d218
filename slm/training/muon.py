"""Muon for the hidden matrices and AdamW for everything else, as one optimizer.

Shape suffixes: K matrices of one shape, m rows, n columns, s the smaller of both.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from slm.hardware import multiplies_natively
from slm.model.gpt import MLP, CausalSelfAttention

COEFFICIENTS = (
    (7.9424, -22.2873, 15.8239),
    (3.5875, -2.5845, 0.4893),
    (2.6604, -1.9134, 0.4194),
)
"""a, b and c of each Newton-Schulz iteration: one after the other they map singular values from
0.01 to 1 into 1 ± 0.29. Each is the best polynomial of its kind for what the one before leaves,
and for 2 % more, as rounding may leave more (Amsel et al. 2025, arXiv 2505.16932);
`benchmarks/muon.py` computes them."""

_SMALLEST = 1e-20  # a norm is divided by this at least, so that zeros stay zeros


def orthogonalize(
    matrices: Tensor, coefficients: Sequence[tuple[float, float, float]] = COEFFICIENTS
) -> Tensor:
    """Brings the singular values of matrices near 1: U S Vᵀ to about U Vᵀ.

    Newton-Schulz iteration: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, which changes singular values
    only: s ← a s + b s³ + c s⁵. It begins with values of at most 1: X is divided by the fourth root
    of the sum of their fourth powers, ‖X Xᵀ‖^½, which is nearer to the largest than the root of the
    sum of their squares, ‖X‖, and known after the first product.

    A matrix that is far from square takes part in two products only. All factors are polynomials
    of the small square G = X Xᵀ (or Xᵀ X), and so is the G that each iteration would find: they are
    multiplied among themselves, and X by them at the end (Gram Newton-Schulz, Zhang et al. 2026,
    dao-lab.ai/blog/2026/gram-newton-schulz). In bfloat16 that rounds more: by 0.07 of the result's
    norm where the iteration of X does by 0.03, which costs no loss (benchmarks/2026-11-26-muon.md).

    Args:
        matrices: (K, m, n).
        coefficients: a, b and c of each iteration.

    Returns:
        (K, m, n), in the format of `matrices`, which is also that of the products.
    """
    m, n = matrices.shape[-2:]
    gram_Kss = matrices.mT @ matrices if m > n else matrices @ matrices.mT
    size_K11 = torch.linalg.matrix_norm(gram_Kss, keepdim=True).clamp(min=_SMALLEST)
    gram_Kss = gram_Kss / size_K11
    factor_Kss = _factor(gram_Kss, coefficients[0])
    product_Kss = factor_Kss * size_K11.rsqrt()
    far_from_square = max(m, n) > 1.5 * min(m, n)
    for triple in coefficients[1:] if far_from_square else ():
        gram_Kss = factor_Kss @ gram_Kss @ factor_Kss
        factor_Kss = _factor(gram_Kss, triple)
        product_Kss = factor_Kss @ product_Kss
    X_Kmn: Tensor = matrices @ product_Kss if m > n else product_Kss @ matrices
    for triple in () if far_from_square else coefficients[1:]:
        X_Kmn = _factor(X_Kmn @ X_Kmn.mT, triple) @ X_Kmn
    return X_Kmn


def _factor(gram_Kmm: Tensor, triple: tuple[float, float, float]) -> Tensor:
    """A I + b G + c G², by which an iteration multiplies X."""
    a, b, c = triple
    factor_Kmm = torch.baddbmm(gram_Kmm, gram_Kmm, gram_Kmm, beta=b, alpha=c)
    factor_Kmm.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor_Kmm


@dataclass(frozen=True)
class Pieces:
    """Of how many matrices a parameter consists, and along which dimension they follow."""

    count: int = 1
    dim: int = 0

    def split(self, matrix: Tensor) -> Tensor:
        """A view of the matrices in one, (count, m, n)."""
        return torch.unflatten(matrix, self.dim, (self.count, -1)).movedim(self.dim, 0)


class Muon(Optimizer):
    """Momentum whose update is orthogonalised.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon.
    With gradient G, momentum μ and weight decay λ, for a matrix W of r rows and c columns:

        M ← μ M + (1 - μ) G
        U = orthogonalize(μ M + (1 - μ) G)
        W ← (1 - lr λ) W - lr √max(1, r / c) U

    which is `torch.optim.Muon` but for three things: one that computes always in bfloat16, which
    most CPUs cannot multiply; matrices of one shape are orthogonalised in one batched product; and
    matrices that are several in one, such as those of all heads, are so each by itself.

    Args:
        groups: Parameters with `lr`, `momentum` and `weight_decay`.
        pieces: Of which matrices each parameter consists.
    """

    def __init__(self, groups: list[dict[str, Any]], pieces: Mapping[Tensor, Pieces]) -> None:
        super().__init__(groups, {})
        self._pieces = pieces

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step; `closure` is not called."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            directions = self._momentum(parameters, group["momentum"])
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter, direction in zip(parameters, directions, strict=True):
                split = self._pieces[parameter].split
                by_shape[split(parameter).shape[1:]].append((split(parameter), split(direction)))
            for (rows, columns), pairs in by_shape.items():
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                updates_Kmn = orthogonalize(_stack([direction for _, direction in pairs]))
                sizes = [len(weights) for weights, _ in pairs]
                for (weights, _), updates in zip(
                    pairs, torch.split(updates_Kmn, sizes), strict=True
                ):
                    weights.add_(updates, alpha=-rate)

    def _momentum(self, parameters: list[Tensor], momentum: float) -> Sequence[Tensor]:
        """Moves the running means towards the gradients; the mean of both, as Nesterov's."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, means, momentum)


def _stack(matrices: list[Tensor]) -> Tensor:
    """Matrices of one shape in one tensor, in the format that the device multiplies fastest."""
    (first, *_) = matrices
    native = multiplies_natively(torch.bfloat16, first.device.type)
    sizes = [len(each) for each in matrices]
    stacked_Kmn = torch.empty(
        (sum(sizes), *first.shape[1:]),
        dtype=torch.bfloat16 if native else torch.float32,
        device=first.device,
    )
    torch._foreach_copy_(torch.split(stacked_Kmn, sizes), matrices)
    return stacked_Kmn


class MuonAdamW(Optimizer):
    """Two optimizers that Lightning, a schedule and a checkpoint see as one.

    The parts share this optimizer's groups and state. In distributed training every process
    orthogonalises the same averaged gradient, so nothing more has to be exchanged.

    Args:
        muon: The group of hidden matrices, with `lr`, `momentum` and `weight_decay`.
        adamw: The other groups, with `lr`, `betas` and `weight_decay` each.
        pieces: As `Muon`'s.
        fused: Whether AdamW uses torch's fused kernel.
    """

    def __init__(
        self,
        muon: list[dict[str, Any]],
        adamw: list[dict[str, Any]],
        pieces: Mapping[Tensor, Pieces],
        *,
        fused: bool,
    ) -> None:
        self.parts: list[Optimizer] = [Muon(muon, pieces), AdamW(adamw, fused=fused)]
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


def hidden_matrices(blocks: nn.Module) -> dict[Tensor, Pieces]:
    """The matrices of the transformer's blocks, which Muon is meant for, and the pieces of each.

    Embeddings, head and vectors are AdamW's. Each head has a matrix of its own for queries, for
    keys, for values and for what it writes, and a gated MLP two for gate and values.
    """
    several: dict[Tensor, Pieces] = {}
    for module in blocks.modules():
        if isinstance(module, CausalSelfAttention):
            several[module.qkv.weight] = Pieces(3 * module.n_head)
            several[module.proj.weight] = Pieces(module.n_head, dim=1)
        elif isinstance(module, MLP) and module.gated:
            several[module.up.weight] = Pieces(2)
    return {p: several.get(p, Pieces()) for p in blocks.parameters() if p.dim() == 2}
