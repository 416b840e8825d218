"""What a machine is, and how fast it multiplies matrices."""

import platform
import re
import time
from pathlib import Path

import torch

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
"""Dense 16-bit operations per second that NVIDIA's datasheets promise, by a part of the name."""

_SHAPES = ((2048, 2048, 2048), (4096, 512, 2048), (4096, 4096, 4096))
_GPU_SHAPES = ((8192, 8192, 8192), (16384, 4096, 4096))


def describe_machine(device: str) -> str:
    """Processor or GPU, and the versions that matter."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}; Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def datasheet_rate(name: str) -> float | None:
    """Operations per second in 16 bits, if a device of this name is known."""
    for part, rate in DATASHEET.items():
        words = re.split("[ -]", name)
        if "Laptop" not in words and all(word in words for word in part.split()):
            return rate
    return None


class MatrixRate:
    """How many operations per second matrix products reach: the best of some large shapes.

    Args:
        device: Where.
        dtype: Number format of the matrices.
    """

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
                _synchronize(self._device)
                started = time.perf_counter()
                torch.mm(a, b, out=out)
                _synchronize(self._device)
                operations = 2 * a.size(0) * a.size(1) * b.size(1)
                best = max(best, operations / (time.perf_counter() - started))
        return best


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
