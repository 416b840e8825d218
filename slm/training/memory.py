"""The memory of a process: reused between steps, returned to the system, measured."""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Makes the C library reuse freed memory instead of returning it to the system.

    Each training step on a CPU allocates the same large blocks. By default glibc maps large blocks
    each time, and the system fills their pages with zeros: a fifth of a step of the 30 M model.
    Returns whether there is such a setting; see mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError is Windows'
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1) == 1
    # Larger blocks fall into holes between small ones, and memory grows. glibc before 2.35 takes
    # half of that at most.
    return trimmed and any(mallopt(_M_MMAP_THRESHOLD, 1 << power) == 1 for power in (26, 25))


def return_freed_memory() -> None:
    """Collects garbage and returns free memory to the system, and to other users of the GPU.

    Without this, what compiling leaves would stay allocated for the whole run.
    """
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA is not in use
    with suppress(AttributeError, OSError, TypeError):  # as above
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the device on CUDA, elsewhere of this process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
