"""Number formats for training."""

import contextlib
from typing import Literal

import torch

from slm import hardware

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"]
# No bf16-true: weights kept in bfloat16 lose the small updates of AdamW.

MIXED_FORMATS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The formats of matrix products in mixed precision; the weights stay float32."""


def resolve_precision(precision: Precision, device: str) -> str:
    """Replaces `auto` by the fastest precision of a type of device.

    bf16-mixed if the device multiplies bfloat16 natively (CUDA from Ampere on; CPUs with
    AVX512-BF16 or AMX), else 16-mixed on CUDA, else 32-true.
    """
    if precision != "auto":
        return precision
    if hardware.multiplies_natively(torch.bfloat16, device):
        return "bf16-mixed"
    return "16-mixed" if device == "cuda" else "32-true"


def is_native(precision: str, device: str) -> bool:
    """Whether a device has instructions for the matrix products of a precision."""
    formats = {"64-true": torch.float64} | MIXED_FORMATS
    return hardware.multiplies_natively(formats.get(precision, torch.float32), device)


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[None]:
    """The context of a forward pass in a precision."""
    if precision not in MIXED_FORMATS:
        return contextlib.nullcontext()
    return torch.autocast(device, MIXED_FORMATS[precision])


def can_fuse(precision: str, device: str) -> bool:
    """Whether AdamW can use its fused kernel, which cannot clip what a GradScaler has scaled."""
    return precision != "16-mixed" and device in ("cpu", "cuda")
