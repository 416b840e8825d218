"""The speed of matrix products."""

import re

import torch

from slm.hardware import clock

DATASHEET = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
}
"""Dense 16-bit operations per second of NVIDIA's datasheets, by a part of the name."""

_SHAPES = ((2048, 2048, 2048), (4096, 512, 2048), (4096, 4096, 4096))
_GPU_SHAPES = ((8192, 8192, 8192), (16384, 4096, 4096))


def datasheet_rate(name: str) -> float | None:
    """The 16-bit operations per second of a device, if its name is known."""
    for part, rate in DATASHEET.items():
        words = re.split("[ -]", name)
        if "Laptop" not in words and all(word in words for word in part.split()):
            return rate
    return None


class MatrixRate:
    """The operations per second that matrix products reach: the best of some large shapes."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        shapes = _GPU_SHAPES if device.type == "cuda" else _SHAPES
        self._products = [
            (
                torch.randn(m, k, device=device).to(dtype),
                torch.randn(k, n, device=device).to(dtype),
                torch.empty(m, n, device=device, dtype=dtype),
            )
            for m, k, n in shapes
        ]

    def measure(self, repeats: int = 3) -> float:
        """Multiplies every pair some times; operations per second of the fastest product."""
        best = 0.0
        for a, b, out in self._products:
            for _ in range(repeats):
                started = clock(self._device)
                torch.mm(a, b, out=out)
                operations = 2 * a.size(0) * a.size(1) * b.size(1)
                best = max(best, operations / (clock(self._device) - started))
        return best
