"""Which number format to compute in."""

from typing import Literal

import torch

from slm.model.weights import multiplies_bf16

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"]
# No bf16-true: weights kept in bfloat16 lose the small updates of AdamW.

MIXED_FORMATS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What mixed precision multiplies in; the weights stay float32."""


def resolve_precision(
    precision: Precision, accelerator: str
) -> Literal["32-true", "16-mixed", "bf16-mixed", "64-true"]:
    """Turns `auto` into what this machine is good at.

    bf16-mixed where the device multiplies bfloat16 natively (CUDA from Ampere on; CPUs with
    AVX512-BF16 or AMX: elsewhere it is emulated and slower than float32), else 16-mixed on CUDA,
    else 32-true.

    Args:
        precision: What was asked for.
        accelerator: `--trainer.accelerator`: `auto`, `cpu`, `gpu`, `cuda`, `mps`, …
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    return "bf16-mixed" if multiplies_bf16() else "32-true"
