"""Whether a device computes what a CPU computes, asked before the first step."""

import copy
import sys

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from slm.errors import UserError
from slm.hardware import describe_device
from slm.model import GPT
from slm.training.loss import NextTokenLoss
from slm.training.memory import is_out_of_memory
from slm.training.module import StoryModel
from slm.training.precision import MIXED_FORMATS, autocast

_TRUSTED = "cpu"
_WINDOWS = 2
# Relative. Rounding is below 0.01 in bfloat16, 0.003 in float16 and 0.00001 in float32; attention
# that is 2 % off makes 0.02, a mask that is missing 0.1 and more.
_TOLERANCE, _MIXED_TOLERANCE = 0.01, 0.03


class DeviceCheck(Callback):
    """Stops a run whose device computes another loss, or other gradients, than the CPU.

    Some kernels of some devices are wrong in some versions, and train nonsense without a word.
    The comparison is on random tokens, without dropout and eager: it changes no weight and no
    random state.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares, on everything but a CPU.

        Raises:
            UserError: The device differs by more than rounding, or fails.
        """
        device = trainer.strategy.root_device
        if device.type == _TRUSTED:
            return
        assert isinstance(pl_module, StoryModel)
        loss, gradients = check_device(pl_module.model, device, str(trainer.precision))
        if trainer.is_global_zero:
            print(
                f"Device     computes what a CPU does: loss {loss:.1e}, gradients {gradients:.1e} "
                "apart",
                file=sys.stderr,
            )


def check_device(model: GPT, device: torch.device, precision: str) -> tuple[float, float]:
    """Compares loss and gradients of a small batch on a device with the CPU's.

    Args:
        model: The network; a copy of it is used.
        device: Where to compute beside the CPU.
        precision: As the Trainer's; the CPU computes in the weights' own format.

    Returns:
        How far the losses are apart and how long the difference of the gradients is, relative to
        the CPU's.

    Raises:
        UserError: More than rounding, or the device fails.
    """
    remedy = "--trainer.accelerator cpu, another torch, or --check_device false to train anyway"
    expected_loss, expected_ND = _loss_and_gradients(model, torch.device(_TRUSTED), "32-true")
    try:
        loss, gradients_ND = _loss_and_gradients(model, device, precision)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{describe_device(device)} fails at a small batch: {str(error).splitlines()[0]}",
            "a device that this torch can use",
            remedy,
        ) from error
    norm = expected_ND.norm().item()
    apart = abs(loss - expected_loss) / expected_loss
    gradients_apart = (gradients_ND - expected_ND).norm().item() / norm
    tolerance = _MIXED_TOLERANCE if precision in MIXED_FORMATS else _TOLERANCE
    if not (apart <= tolerance and gradients_apart <= tolerance):  # a NaN is neither
        raise UserError(
            f"{describe_device(device)} computes a loss of {loss:.4f} and gradients of norm "
            f"{gradients_ND.norm().item():.4g} in {precision}, {gradients_apart:.1%} off the CPU's",
            f"{expected_loss:.4f} and {norm:.4g}, as the CPU computes them, within {tolerance:.0%}",
            remedy,
        )
    return apart, gradients_apart


def _loss_and_gradients(model: GPT, device: torch.device, precision: str) -> tuple[float, Tensor]:
    """Loss of random tokens, and all gradients in one vector, on the CPU."""
    there = copy.deepcopy(model).to(device).eval()
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (_WINDOWS, config.block_size + 1)
    tokens = torch.randint(config.vocab_size, shape, generator=generator).to(device)
    with autocast(precision, device.type):
        loss = NextTokenLoss()(there, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    torch.autograd.backward(loss)
    gradients = [p.grad.flatten().cpu() for p in there.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients).double()
