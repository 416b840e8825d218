"""Muon for the hidden matrices and AdamW for everything else, as one optimizer.

Shape suffixes: K matrices of one shape, m rows, n columns, s the smaller of the two.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
"""a, b and c of each Newton-Schulz iteration. Together they map singular values from 0.01 to 1
into 1 ± 0.29. Each polynomial is optimal for the range of the previous one's output, with the
upper end raised by 2 % to allow for rounding (Amsel et al. 2025, arXiv 2505.16932);
`benchmarks/muon.py` computes them."""

_SMALLEST = 1e-20  # lower bound of a norm to divide by, so that zeros stay zeros


def orthogonalize(
    matrices: Sequence[Tensor], coefficients: Sequence[tuple[float, float, float]] = COEFFICIENTS
) -> list[Tensor]:
    """Brings the singular values of matrices near 1: U S Vᵀ becomes about U Vᵀ.

    Newton-Schulz iteration: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, which changes the singular values
    only: s ← a s + b s³ + c s⁵. It needs values of at most 1 to start from, so X is divided by the
    fourth root of the sum of their fourth powers, ‖X Xᵀ‖^½. That is closer to the largest than the
    usual Frobenius norm ‖X‖, and known after the first product.

    Every iteration multiplies X by a polynomial of the small square G = X Xᵀ (or Xᵀ X, if that is
    smaller), and the next G is a polynomial of this one. So the polynomials are multiplied
    together, and X is used only in the first and the last product (Gram Newton-Schulz, Zhang et
    al. 2026, dao-lab.ai/blog/2026/gram-newton-schulz). In float32 that is exact to rounding. In
    bfloat16 the error is 0.02 to 0.19 of the result's norm, larger than that of iterating X, at no
    cost in loss (benchmarks/2026-11-26-muon.md).

    Args:
        matrices: Batches (K, m, n) whose smaller side, s, is the same. K, m and n may differ.
        coefficients: a, b and c of each iteration.

    Returns:
        As `matrices`, in the same dtype, which is also that of the products.
    """
    tall = [X_Kmn.size(1) > X_Kmn.size(2) for X_Kmn in matrices]
    wide = [X.mT if is_tall else X for X, is_tall in zip(matrices, tall, strict=True)]
    gram_Kss = torch.cat([X @ X.mT for X in wide])
    size_K11 = torch.linalg.matrix_norm(gram_Kss, keepdim=True).clamp(min=_SMALLEST)
    gram_Kss = gram_Kss / size_K11
    factor_Kss = _factor(gram_Kss, coefficients[0])
    product_Kss = factor_Kss * size_K11.rsqrt()
    for triple in coefficients[1:]:
        gram_Kss = factor_Kss @ gram_Kss @ factor_Kss
        factor_Kss = _factor(gram_Kss, triple)
        product_Kss = factor_Kss @ product_Kss  # in this order, so that each repairs the last
    products = torch.split(product_Kss, [len(X) for X in matrices])
    # A tall matrix's product is computed untransposed, so that the result is contiguous.
    return [
        X @ product.mT if is_tall else product @ X
        for X, is_tall, product in zip(matrices, tall, products, strict=True)
    ]


def _factor(gram_Kss: Tensor, triple: tuple[float, float, float]) -> Tensor:
    """The polynomial a I + b G + c G², by which an iteration multiplies X."""
    a, b, c = triple
    factor_Kss = torch.baddbmm(gram_Kss, gram_Kss, gram_Kss, beta=b, alpha=c)
    factor_Kss.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor_Kss


class Muon(Optimizer):
    """SGD with momentum and orthogonalized updates.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon.
    With gradient G, momentum μ and weight decay λ, for a matrix W of r rows and c columns:

        M ← μ M + (1 - μ) G
        W ← (1 - lr λ) W - lr √max(1, r / c) orthogonalize(μ M + (1 - μ) G)

    Unlike `torch.optim.Muon`, which always computes in bfloat16, it uses float32 where bfloat16 is
    not native; it batches the products of matrices of one size; and it orthogonalizes each matrix
    separately where a parameter stacks several of them along its rows: `pieces` of them.
    """

    def __init__(self, groups: list[dict[str, Any]], pieces: Mapping[Tensor, int]) -> None:
        super().__init__(groups, {})
        self._pieces = pieces

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step; `closure` is not called."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            native = multiplies_natively(torch.bfloat16, parameters[0].device.type)
            dtype = torch.bfloat16 if native else torch.float32
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            directions = self._momentum(parameters, group["momentum"])
            by_size: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter, direction in zip(parameters, directions, strict=True):
                shape = (self._pieces[parameter], -1, parameter.size(1))
                batch = parameter.view(shape), direction.reshape(shape).to(dtype)
                by_size[min(batch[0].shape[1:])].append(batch)
            for batches in by_size.values():
                weights, matrices = zip(*batches, strict=True)
                for weights_Kmn, updates_Kmn in zip(weights, orthogonalize(matrices), strict=True):
                    scale = math.sqrt(max(1.0, weights_Kmn.size(1) / weights_Kmn.size(2)))
                    weights_Kmn.add_(updates_Kmn, alpha=-group["lr"] * scale)

    def _momentum(self, parameters: list[Tensor], momentum: float) -> Sequence[Tensor]:
        """Updates the running means; returns Nesterov's average of them and the gradients."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, means, momentum)


class MuonAdamW(Optimizer):
    """Two optimizers that Lightning, a schedule and a checkpoint see as one.

    The parts share this optimizer's groups, of which Muon has the first, and its state. In
    distributed training every process orthogonalizes the same averaged gradient, so nothing more
    is exchanged.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.parts: list[Optimizer] = [muon, adamw]
        super().__init__(muon.param_groups + adamw.param_groups, {})
        self._share()

    def _share(self) -> None:
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state

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


def hidden_matrices(blocks: nn.Module) -> dict[Tensor, int]:
    """The blocks' 2-D parameters, which Muon updates, and how many matrices each one stacks.

    Every head has its own query, key and value matrices; a gated MLP has one for the gate and one
    for the values. Embeddings, output head and vectors are left to AdamW.
    """
    several: dict[Tensor, int] = {}
    for module in blocks.modules():
        if isinstance(module, CausalSelfAttention):
            several[module.qkv.weight] = 3 * module.n_head
        elif isinstance(module, MLP) and module.gated:
            several[module.up.weight] = 2
    return {p: several.get(p, 1) for p in blocks.parameters() if p.dim() == 2}
