"""Checks, before the first step, that a device computes the same as the CPU."""

import copy
import math
import sys

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from slm.errors import UserError, is_out_of_memory
from slm.hardware import describe_device
from slm.model import GPT
from slm.training.loss import NextTokenLoss
from slm.training.module import StoryModel
from slm.training.precision import MIXED_FORMATS, autocast

_TRUSTED = "cpu"
_WINDOWS = 2
# Error of any matrix's gradient, relative to its norm. Measured: rounding, at most 0.016 in
# bfloat16, 0.002 in float16, 0.00001 in float32; attention off by 5 %, 0.07; no mask, 0.8.
_TOLERANCE, _MIXED_TOLERANCE = 0.01, 0.04
_LOSS_SCALE = 1024.0  # small gradients would vanish in float16


class DeviceCheck(Callback):
    """Stops a run whose device computes another loss or other gradients than the CPU.

    Kernels of some versions of some devices are wrong, and training silently produces nonsense. The
    comparison runs eagerly on random tokens, without dropout; it changes neither weights nor random
    state.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = trainer.strategy.root_device
        assert isinstance(pl_module, StoryModel)
        if device.type == _TRUSTED or pl_module.sharded:
            return
        loss, gradients = check_device(pl_module.model, device, str(trainer.precision))
        if trainer.is_global_zero:
            print(
                f"Device     agrees with the CPU: loss within {loss:.1e}, "
                f"gradients {gradients:.1e}",
                file=sys.stderr,
            )


def check_device(model: GPT, device: torch.device, precision: str) -> tuple[float, float]:
    """Compares loss and gradients of a small batch on a device with the CPU's.

    Copies of the model are used. The precision is the device's; the CPU computes in the weights'
    own dtype.

    Returns:
        Relative differences of the losses and of the gradients. The latter is the norm of the
        difference divided by the norm of the gradient, for the matrix where this is largest.

    Raises:
        UserError: They differ by more than rounding, or the device fails.
    """
    remedy = (
        "--trainer.accelerator cpu, another version of torch, "
        "or --check_device false to train anyway"
    )
    expected_loss, expected = _loss_and_gradients(model, torch.device(_TRUSTED), "32-true")
    try:
        loss, gradients = _loss_and_gradients(model, device, precision)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{describe_device(device)} fails on a small batch: {str(error).splitlines()[0]}",
            "a device that this version of torch supports",
            remedy,
        ) from error
    loss_difference = abs(loss - expected_loss) / expected_loss
    differences = {
        name: ((gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)).item()
        for name, gradient in expected.items()
    }
    # A NaN counts as the largest.
    name = max(differences, key=lambda name: (math.isnan(differences[name]), differences[name]))
    tolerance = _MIXED_TOLERANCE if precision in MIXED_FORMATS else _TOLERANCE
    if not (loss_difference <= tolerance and differences[name] <= tolerance):
        raise UserError(
            f"{describe_device(device)} computes a loss of {loss:.4f} in {precision}, and a "
            f"gradient of {name} that is {differences[name]:.1%} off the CPU's",
            f"{expected_loss:.4f}, as the CPU computes it, and gradients within {tolerance:.0%}",
            remedy,
        )
    return loss_difference, differences[name]


def _loss_and_gradients(
    model: GPT, device: torch.device, precision: str
) -> tuple[float, dict[str, Tensor]]:
    """Loss of random tokens, and the gradients of all matrices by name, in float64 on the CPU.

    Query, key and value gradients are separate: those of queries and keys are initially small
    compared with the values'. Vectors are excluded: the gradient of a key bias is zero except for
    rounding errors, which cannot be compared.
    """
    copied = copy.deepcopy(model).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (_WINDOWS, model.config.block_size + 1)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    with autocast(precision, device.type):
        loss = NextTokenLoss()(copied, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    torch.autograd.backward(loss * _LOSS_SCALE)
    return loss.item(), {
        f"{name}[{index}]": part.cpu().double() / _LOSS_SCALE
        for name, parameter in copied.named_parameters()
        if parameter.grad is not None and parameter.dim() == 2
        for index, part in enumerate(parameter.grad.chunk(3 if ".qkv." in name else 1))
    }
