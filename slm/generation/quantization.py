"""Weights in the format that a device reads fastest, for inference.

Decoding one sequence reads every weight once per token, so it is bound by the memory bandwidth:
half the bytes are up to twice the tokens per second.

Shape suffixes: N output channels, K input channels, M rows of input.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm import hardware
from slm.model.gpt import GPT

Quantization = Literal["auto", "fp32", "bf16", "int8"]


def resolve_quantization(weights: Quantization, device: str) -> Literal["fp32", "bf16", "int8"]:
    """Replaces `auto`: bf16 if the device multiplies it natively, else fp32.

    Raises:
        ValueError: int8 elsewhere than on a CPU, or bf16 on one without oneDNN's layers for it.
    """
    if weights == "int8" and device != "cpu":
        raise ValueError(f"weights is int8 on {device}; int8 on a CPU, here bf16 or fp32")
    if weights == "bf16" and device == "cpu" and not hardware.packs_bfloat16():
        raise ValueError("weights is bf16 on a CPU for which oneDNN has none; fp32 or int8")
    if weights != "auto":
        return weights
    return "bf16" if hardware.multiplies_natively(torch.bfloat16, device) else "fp32"


def native_formats(device: str) -> list[Quantization]:
    """The formats that a device computes efficiently: fp32, bf16 if it is native, int8 on a CPU."""
    bf16: list[Quantization] = ["bf16"] if resolve_quantization("auto", device) == "bf16" else []
    int8: list[Quantization] = ["int8"] if device == "cpu" else []
    return ["fp32", *bf16, *int8]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes a matrix (N, K) to 8-bit integers, with one scale for each output channel.

    The scale is the largest magnitude in the channel over 127, in bfloat16; the integers are
    rounded with that scale, so that an error of a weight is at most about half of it.

    Returns:
        Integers (N, K), int8, and scales (N,), bfloat16: the weight is about integers * scales.
    """
    weight_NK = weight.float()
    scales_N = (weight_NK.abs().amax(dim=1) / 127).clamp(min=1e-30).bfloat16()
    integers_NK = (weight_NK / scales_N.float()[:, None]).round().clamp(-127, 127)
    return integers_NK.to(torch.int8), scales_N


class InferenceLinear(nn.Module):
    """A linear layer whose weights are laid out for reading.

    Inputs are converted to the format of the multiplication, which is also that of the output. The
    sums run in the same order however many rows are computed together, so that a story does not
    depend on its batch.

    Args:
        weight: The matrix, (N, K).
        bias: (N,), or None.

    Attributes:
        n_bytes: Bytes of weights that one pass reads.
        in_dtype: Format of the inputs in the multiplication.
        out_dtype: Format of the outputs.
    """

    n_bytes: int
    in_dtype: torch.dtype
    out_dtype: torch.dtype
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """The weights, (N, K), and scales of the output channels, (N,), if there are any."""
        raise NotImplementedError


_INT8_CHANNELS = 32
"""torch's kernel reads its input in blocks of this many channels, without checking for the end."""


class Int8Linear(InferenceLinear):
    """Weights as 8-bit integers, multiplied with inputs in bfloat16, added up in float32.

    The kernel converts its operands, so it runs on every CPU. The layers after it do not, so the
    output is float32 on a CPU without native bfloat16.
    """

    in_dtype = torch.bfloat16

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        native = hardware.multiplies_natively(torch.bfloat16, "cpu")
        self.out_dtype = torch.bfloat16 if native else torch.float32
        integers_NK, self.scales = quantize(weight)
        self._padding = -weight.size(1) % _INT8_CHANNELS
        self.integers = F.pad(integers_NK, (0, self._padding))
        self.n_bytes = self.integers.numel() + 2 * len(self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        x_MK = x.to(self.in_dtype).view(-1, x.size(-1))
        if self._padding:
            x_MK = F.pad(x_MK, (0, self._padding))
        out_MN = torch._weight_int8pack_mm(x_MK, self.integers, self.scales)
        out = out_MN.to(self.out_dtype).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Integers and scales."""
        return self.integers[:, : self.integers.size(1) - self._padding], self.scales


class PackedLinear(InferenceLinear):
    """Weights in oneDNN's layout, computed once instead of at every multiplication.

    With the operators that torch's compiler uses for frozen weights.
    """

    in_dtype = out_dtype = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.in_dtype))
        self.n_bytes = weight.numel() * self.in_dtype.itemsize

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        x_MK = x.view(-1, x.size(-1))
        M = len(x_MK)
        if M == 1:
            # oneDNN multiplies a vector slower than a small matrix, and adds up differently.
            x_MK = x_MK.expand(4, -1)
        out_MN: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_MK.to(self.in_dtype), self.packed, None, "none", [], ""
        )
        out = out_MN[:M].view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def matrix(self) -> tuple[Tensor, None]:
        """The weights, in their usual layout."""
        return self.packed.to_dense(), None


class PackedBf16Linear(PackedLinear):
    """The same in bfloat16, added up in float32."""

    in_dtype = out_dtype = torch.bfloat16


def for_inference(model: GPT, weights: Literal["fp32", "bf16", "int8"], device: str) -> GPT:
    """A copy of a network for inference, in evaluation mode, on a device.

    It cannot be trained, and its state fits no checkpoint. On a CPU only the matrices change their
    format; embeddings, norms, attention and activations stay in float32. On other devices `bf16`
    means all of it.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    if device == "cpu":
        kinds = {"fp32": PackedLinear, "bf16": PackedBf16Linear, "int8": Int8Linear}
        if weights == "int8" or hardware.packs_float32():
            return _replace(fast, kinds[weights])
    if weights == "bf16":
        fast.to(torch.bfloat16)
        if fast.config.position == "rotary":  # eight bits are too few for an angle
            fast.angles = model.angles.to(device)
    return fast


def _replace(model: GPT, kind: type[InferenceLinear]) -> GPT:
    """Replaces each linear layer, the head's included."""
    head = model.token_embedding.weight if model.head is None else model.head.weight
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and module is not model:  # the head is in `head`
                setattr(module, name, kind(child.weight, child.bias))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    assert isinstance(head, Tensor)
    model.head = kind(head)
    return model
