"""Compiles decode passes with AOTInductor: `python -m slm.generation.building REQUEST`.

In a process of its own: torch's compiler takes two seconds to import, and half a minute to run.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import torch
from torch.export import Dim

from slm.generation.cache import SLOTS, KVCache
from slm.generation.compiled import find_unit, write_unit
from slm.generation.quantization import for_inference
from slm.generation.unit import DecodeUnit
from slm.hardware import vector_floats
from slm.model.config import GPTConfig
from slm.model.gpt import GPT

_KEPT_DAYS = 60
"""Units that no process has loaded for so long are removed."""


def compile_unit(
    config: GPTConfig, weights: Literal["fp32", "bf16", "int8"], rows: int, threads: int
) -> bytes:
    """The decode pass of a shape of network, as the contents of a package of AOTInductor."""
    unit = DecodeUnit(for_inference(GPT(config), weights, "cpu"))
    stored = [part for layer in KVCache(config, rows).layers for part in layer]
    slots = stored[0].size(2)
    tokens_M = torch.zeros(rows, dtype=torch.int64)
    # It reads as many slots as its longest row needs.
    chunks = {0: SLOTS * Dim("chunks", min=1, max=slots // SLOTS)} if slots > SLOTS else None
    width = vector_floats()
    options = {
        "aot_inductor.package_constants_in_so": False,
        "cpp.enable_floating_point_contract_flag": "fast",  # a product and its sum in one step
        "cpp.max_horizontal_fusion_size": width,  # sums in one loop: what the registers hold
        "cpp.simdlen": 32 * width,
        "cpp.threads": threads,
        "emulate_precision_casts": True,  # rounds where the plain pass does
    }
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(
            unit,
            (tokens_M, tokens_M.clone(), torch.arange(max(SLOTS, slots - SLOTS)), *stored),
            dynamic_shapes=((None, None, chunks, (None,) * len(stored))),
        )
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(Path(folder) / "unit.pt2"), inductor_configs=options
        )
        return Path(package).read_bytes()


@contextmanager
def _alone(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether no other process builds into a folder; with `wait`, as soon as none does."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _stand_back() -> None:
    """Takes processor time only when nobody else wants it: stories are being generated."""
    if hasattr(os, "nice"):
        os.nice(19)
    with suppress(OSError):  # Linux shares the time between sessions first, then within them
        Path("/proc/self/autogroup").write_text("19")
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Builds what is asked for and missing."""
    request = json.loads(sys.argv[1])
    folder, wait = Path(request["folder"]), bool(request["wait"])
    if not wait:
        _stand_back()
    torch.set_num_threads(request["threads"])
    config = GPTConfig(**request["config"])
    with _alone(folder, wait) as alone:
        for rows, key in request["units"] if alone else ():
            failed = folder / f"{key}.failed"
            if find_unit(folder, key) is None:
                try:
                    content = compile_unit(config, request["weights"], rows, request["threads"])
                except Exception:
                    failed.touch()  # so that it is not tried in each process
                    raise
                write_unit(folder, key, content)
            failed.unlink(missing_ok=True)
        for path in folder.glob("*.pt2"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                    path.unlink()


if __name__ == "__main__":
    main()
