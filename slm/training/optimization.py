"""Optimizers with weight-decay groups, and the learning-rate schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import AdamW, Optimizer

from slm.model import GPT
from slm.model.config import check
from slm.training.muon import Muon, MuonAdamW, hidden_matrices


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
    """Step at which the decay ends; null means trainer.max_steps. With a budget the decay ends with
    the budget."""
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
    """The learning rate after the warm-up: a half cosine, or constant and then linear decay over
    the last part, `cooldown_share` (trapezoid, also known as WSD)."""
    cooldown_share: float = 0.5
    """Part of the steps over which a trapezoid falls; 1 makes it a straight line."""

    def __post_init__(self) -> None:
        check(self, "lr", self.lr > 0, "above 0")
        check(self, "min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "from 0 to 1")
        check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")
        steps = self.decay_steps
        check(self, "decay_steps", steps is None or steps >= 1, "1 or more, or null")
        check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        check(self, "name", self.name in ("adamw", "muon"), "adamw or muon")
        check(self, "muon_lr", self.muon_lr > 0, "above 0")
        for name in ("beta1", "beta2", "muon_momentum"):
            check(self, name, 0 <= getattr(self, name) < 1, "at least 0, below 1")
        schedules = ("cosine", "trapezoid")
        check(self, "schedule", self.schedule in schedules, "cosine or trapezoid")
        check(self, "cooldown_share", 0 < self.cooldown_share <= 1, "above 0, at most 1")


def make_optimizer(model: GPT, options: OptimizerOptions, *, fused: bool) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), or Muon with it, for a model.

    Parameters of two and more dimensions (matrices, embeddings) decay; vectors (biases, norm
    weights) do not. `fused` selects torch's fused kernel of AdamW.
    """
    pieces = hidden_matrices(model.blocks) if options.name == "muon" else {}
    rest = [p for p in model.parameters() if p.requires_grad and p not in pieces]
    common: dict[str, Any] = {"lr": options.lr, "betas": (options.beta1, options.beta2)}
    decay = options.weight_decay
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay} | common,
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0} | common,
    ]
    adamw = AdamW(groups, fused=fused)
    if options.name == "adamw":
        return adamw
    muon = {"lr": options.muon_lr, "momentum": options.muon_momentum, "weight_decay": decay}
    return MuonAdamW(Muon([{"params": list(pieces)} | muon], pieces), adamw)


def learning_rate_curve(options: OptimizerOptions, total: int) -> Callable[[float], float]:
    """The multiplier of the learning rates as a function of the optimizer step.

    With w warm-up steps, floor m and progress p = (s - w) / (total - w):

        s < w:       (s + 1) / w
        cosine:      m + (1 - m) (1 + cos(pi p)) / 2     (Loshchilov & Hutter 2017, 1608.03983)
        trapezoid:   m + (1 - m) min(1, (1 - s / total) / c), with cooldown_share c
        s >= total:  m
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
