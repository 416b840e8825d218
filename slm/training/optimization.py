"""Optimizers with decay groups, and the learning rate's course: warm-up, then down."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import AdamW, Optimizer

from slm.model import GPT
from slm.training.muon import MuonAdamW, hidden_matrices


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and its schedule; all counts are optimizer steps.

    Raises:
        ValueError: A field is out of range.
    """

    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    min_lr_ratio: float = 0.1
    """The learning rate ends at this share of the peak."""
    warmup_steps: int = 100
    """Steps of linear growth from 0 to the peak."""
    decay_steps: int | None = None
    """Step at which the cosine reaches its end; null means trainer.max_steps. With a
    budget of time the end of the time takes its place."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings; biases and norms have none."""
    beta1: float = 0.9
    """AdamW's decay rate of the gradient's running mean."""
    beta2: float = 0.95
    """AdamW's decay rate of the squared gradient's running mean."""
    name: Literal["adamw", "muon"] = "adamw"
    """AdamW for every parameter, or Muon for the matrices of the blocks and AdamW for the rest."""
    muon_lr: float = 0.02
    """Muon's peak learning rate; lr is AdamW's."""
    muon_momentum: float = 0.95
    """Muon's decay rate of the gradient's running mean."""
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    """How the learning rate falls behind the warm-up: along a half cosine, or not at all until it
    falls in a straight line over the last part, `cooldown_share`."""
    cooldown_share: float = 0.5
    """Part of the steps over which a trapezoid falls; 1 makes it a straight line."""

    def __post_init__(self) -> None:
        checks = {
            f"lr is {self.lr}; it has to be above 0": self.lr > 0,
            f"min_lr_ratio is {self.min_lr_ratio}; it has to be from 0 to 1": (
                0 <= self.min_lr_ratio <= 1
            ),
            f"warmup_steps is {self.warmup_steps}; it has to be 0 or more": self.warmup_steps >= 0,
            f"decay_steps is {self.decay_steps}; it has to be 1 or more, or null": (
                self.decay_steps is None or self.decay_steps >= 1
            ),
            f"weight_decay is {self.weight_decay}; it has to be 0 or more": self.weight_decay >= 0,
            f"name is {self.name}; it has to be adamw or muon": self.name in ("adamw", "muon"),
            f"muon_lr is {self.muon_lr}; it has to be above 0": self.muon_lr > 0,
            f"muon_momentum is {self.muon_momentum}; it has to be at least 0, below 1": (
                0 <= self.muon_momentum < 1
            ),
            f"schedule is {self.schedule}; it has to be cosine or trapezoid": (
                self.schedule in ("cosine", "trapezoid")
            ),
            f"cooldown_share is {self.cooldown_share}; it has to be above 0, at most 1": (
                0 < self.cooldown_share <= 1
            ),
            f"betas are {self.beta1} and {self.beta2}; they have to be at least 0, below 1": (
                0 <= self.beta1 < 1 and 0 <= self.beta2 < 1
            ),
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


def make_optimizer(model: GPT, options: OptimizerOptions, *, fused: bool) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), or Muon beside it, over a model.

    Parameters of two and more dimensions (matrices, embeddings) decay; vectors (biases, norm
    weights) do not.

    Args:
        model: Whose parameters to train.
        options: Which optimizer, learning rates and weight decay.
        fused: Whether AdamW uses torch's fused kernel.
    """
    pieces = hidden_matrices(model.blocks) if options.name == "muon" else {}
    rest = [p for p in model.parameters() if p.requires_grad and p not in pieces]
    adamw: dict[str, Any] = {"lr": options.lr, "betas": (options.beta1, options.beta2)}
    decay = options.weight_decay
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay} | adamw,
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0} | adamw,
    ]
    if options.name == "adamw":
        return AdamW(groups, fused=fused)
    muon = {"lr": options.muon_lr, "momentum": options.muon_momentum, "weight_decay": decay}
    return MuonAdamW([{"params": list(pieces)} | muon], groups, pieces, fused=fused)


def learning_rate_curve(options: OptimizerOptions, total: int) -> Callable[[float], float]:
    """The multiplier of the learning rates as a function of the optimizer step.

    With w warm-up steps, floor m and progress p = (s - w) / (total - w):

        s < w:       (s + 1) / w
        cosine:      m + (1 - m) (1 + cos(pi p)) / 2     (Loshchilov & Hutter 2017, 1608.03983)
        trapezoid:   m + (1 - m) min(1, (1 - s / total) / c), with cooldown_share c
        s >= total:  m

    Args:
        options: Kind of curve, `warmup_steps`, `min_lr_ratio`, `cooldown_share`.
        total: Step at which the curve reaches its floor.
    """
    warmup, floor = min(options.warmup_steps, total), options.min_lr_ratio

    def multiplier(step: float) -> float:
        if step < warmup:
            return min(1.0, (step + 1) / warmup)  # a clock's position is no whole number
        if step >= total:
            return floor
        if options.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        else:
            fall = min(1.0, (1 - step / total) / options.cooldown_share)
        return floor + (1 - floor) * fall

    return multiplier
