"""Hardware facts: the devices of this machine, the dtypes they multiply natively, their names.

The only module that asks torch for these facts. `python -m slm.hardware` prints them.
"""

import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Literal, get_args

import torch

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
"""Values of `--trainer.accelerator`."""
COMPILER = os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
"""The C++ compiler that torch would use."""


def find_device(accelerator: str) -> torch.device:
    """The device for an `Accelerator`; `auto` and `gpu` choose the best available one.

    Raises:
        ValueError: The name is invalid, or there is no such device.
    """
    if accelerator not in get_args(Accelerator):
        raise ValueError(f"accelerator is {accelerator}; {', '.join(get_args(Accelerator))}")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    raise ValueError(f"accelerator is {accelerator}, and torch finds no such device; cpu, or auto")


def multiplies_natively(dtype: torch.dtype, device: str) -> bool:
    """Whether a type of device has instructions for matrix products in a floating-point dtype.

    Without them, torch falls back to scalar arithmetic: bfloat16 on a CPU without AVX512-BF16 or
    AMX takes 46 to 60 times as long as float32 (benchmarks/2026-11-26-muon.md).
    """
    if dtype in (torch.float32, torch.float64):
        return dtype in (torch.float32, widest_float(device))
    if dtype == torch.bfloat16:
        if device == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return device == "cpu" and _cpu_multiplies_bfloat16()
    return dtype == torch.float16 and device in ("cuda", "mps")


def _cpu_multiplies_bfloat16() -> bool:
    if not packs_bfloat16():
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # new in torch 2.12
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def packs_float32() -> bool:
    """Whether torch was built with oneDNN, whose linear layers use a packed weight layout."""
    return bool(torch._C._has_mkldnn)


def packs_bfloat16() -> bool:
    """Whether oneDNN supports these layers in bfloat16 on this CPU, even if they are slow.

    This respects limits of oneDNN, such as ONEDNN_MAX_CPU_ISA=AVX2.
    """
    return packs_float32() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def vector_floats() -> int:
    """How many float32 numbers torch's widest vector instructions on this CPU take: 16 or 8."""
    return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8


def cpp_compiler() -> str | None:
    """Where the C++ compiler is, if there is one."""
    return shutil.which(COMPILER)


def cpu_identity() -> str:
    """Changes with what machine code this CPU can run."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_cpuinfo('model name')} {platform.machine()} {capability} {_cpuinfo('flags')}"


def widest_float(device: str) -> torch.dtype:
    """float64, or float32 on Apple's Metal, which has no float64."""
    return torch.float32 if device == "mps" else torch.float64


def clock(device: torch.device | str) -> float:
    """The time in seconds after the device has finished its queued work."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def describe_device(device: torch.device | str) -> str:
    """Name of a GPU; or a processor's name and threads, and what its speed depends on.

    That is the widest vector instructions that torch uses, and whether bfloat16 is native.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{_processor()}, {torch.get_num_threads()} threads"
    if device.type != "cpu":
        return f"{device.type} of {name}"
    bfloat16 = "" if multiplies_natively(torch.bfloat16, "cpu") else "no "
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {bfloat16}bfloat16"


def describe_machine(device: torch.device | str) -> str:
    """`describe_device`, with the versions of Python and torch."""
    python = platform.python_version()
    return f"{describe_device(device)}; Python {python}, torch {torch.__version__}"


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """A field of Linux's description of the first processor, or nothing."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return ""


if __name__ == "__main__":
    for name in dict.fromkeys(("cpu", find_device("auto").type)):
        print(describe_machine(name))
