"""AdamW with decay groups, and the learning rate's warm-up and cosine."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW and its schedule; all counts are optimizer steps.

    Raises:
        ValueError: A field is out of range.
    """

    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    min_lr_ratio: float = 0.1
    """The cosine ends at this share of the peak."""
    warmup_steps: int = 100
    """Steps of linear growth from 0 to the peak."""
    decay_steps: int | None = None
    """Step at which the cosine reaches its end; null means trainer.max_steps."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings; biases and norms have none."""
    beta1: float = 0.9
    """AdamW's decay rate of the gradient's running mean."""
    beta2: float = 0.95
    """AdamW's decay rate of the squared gradient's running mean."""

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
            f"betas are {self.beta1} and {self.beta2}; they have to be at least 0, below 1": (
                0 <= self.beta1 < 1 and 0 <= self.beta2 < 1
            ),
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


def make_adamw(module: nn.Module, options: OptimizerOptions, *, fused: bool) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over a module's parameters.

    Parameters of two and more dimensions (matrices, embeddings) decay; vectors (biases, norm
    weights) do not.

    Args:
        module: Whose parameters to train.
        options: Learning rate, betas and weight decay.
        fused: Whether to use torch's fused kernel.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.dim() >= 2],
            "weight_decay": options.weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.dim() < 2],
            "weight_decay": 0.0,
        },
    ]
    return AdamW(groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=fused)


def warmup_cosine(warmup: int, total: int, floor: float) -> Callable[[int], float]:
    """The multiplier of the learning rate as a function of the optimizer step.

        s < warmup:   (s + 1) / warmup
        s < total:    floor + (1 - floor) (1 + cos(pi (s - warmup) / (total - warmup))) / 2
        afterwards:   floor

    Args:
        warmup: Steps of linear growth.
        total: Step at which the cosine (Loshchilov & Hutter 2017, arXiv 1608.03983) ends.
        floor: Multiplier at and after the end.
    """

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if step >= total:
            return floor
        progress = (step - warmup) / (total - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return multiplier
