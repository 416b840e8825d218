"""Detects gradients and weights that are not finite."""

import sys

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from slm.errors import UserError

_MOST_SKIPPED = 10


def diverged(found: str, step: int) -> UserError:
    """The error for training that has diverged; optimizer steps are counted from 1."""
    return UserError(
        f"{found} at step {step:,}",
        "finite numbers; nothing of this step is saved, earlier checkpoints are kept",
        "train with a lower --model.optimizer.lr, from the start or from an earlier checkpoint by "
        "--ckpt_path; --model.skip_nonfinite true skips single bad steps",
    )


class FiniteGradients:
    """Checks each step's gradient norm.

    On a CPU, or if bad steps are skipped, before the step is taken. On a GPU reading the norm would
    make the CPU wait in every step, so it is copied asynchronously and read one step later; weights
    that a bad step has damaged are not saved (`check_weights`).
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._skipped = 0
        self._earlier: tuple[int, Tensor, torch.cuda.Event] | None = None

    def check(self, norm: Tensor, step: int) -> bool:
        """Whether to take a step, counted from 1, whose gradient has this norm.

        Raises:
            UserError: The norm, or the one before it, is not finite, and steps are not skipped; or
                too many in a row are not.
        """
        if norm.is_cuda and not self.skip:
            self._look_later(norm, step)
            return True
        if bool(norm.isfinite()):
            self._skipped = 0
            return True
        self._skipped += 1
        if not self.skip or self._skipped > _MOST_SKIPPED:
            raise diverged(f"the gradient's norm is {norm.item()}", step)
        rank_zero_only(print)(
            f"Skipped    step {step:,}: its gradient is not finite", file=sys.stderr
        )
        return False

    def _look_later(self, norm: Tensor, step: int) -> None:
        if self._earlier is not None:
            earlier_step, earlier_norm, copied = self._earlier
            copied.synchronize()
            if not bool(earlier_norm.isfinite()):
                raise diverged(f"the gradient's norm is {earlier_norm.item()}", earlier_step)
        host = torch.empty((), dtype=norm.dtype, pin_memory=True).copy_(norm, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._earlier = step, host, copied


def check_weights(model: nn.Module, trainer: Trainer, sharded: bool) -> None:
    """Raises a UserError if a weight is not finite; of all processes, if they are sharded."""
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    finite = all(bool(part.isfinite().all()) for part in parts)
    if sharded:
        finite = trainer.strategy.reduce_boolean_decision(finite)
    if not finite:
        raise diverged("the weights are not finite", trainer.global_step)
