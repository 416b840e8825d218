"""The decode pass on a CPU through compiled units, which are kept for later processes.

A unit is compiled code for a shape of network, a number format and a number of rows. It contains no
weights: those are given to it when it is loaded. Another process builds it, which takes about half
a minute, while this one already generates by the plain pass.
"""

import functools
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import slm
from slm import hardware
from slm.generation.cache import SLOTS, KVCache, round_up
from slm.generation.decode import PlainDecode
from slm.generation.quantization import InferenceLinear
from slm.generation.unit import unit_weights
from slm.model.config import GPTConfig
from slm.model.gpt import GPT

Format = Literal["fp32", "bf16", "int8"]

_WORTH = {1: 1, 4: 2, 16: 9}
"""Numbers of rows for which there are units, and from how many sequences on one is used. More are
computed in several goes."""
_PATIENCE = 0.5
"""Seconds between two looks at whether a unit is ready."""


def cache_folder() -> Path | None:
    """Where units are kept: SLM_CACHE_DIR, or slm in the user's cache folder.

    None if SLM_CACHE_DIR is empty, or if others may write there: a unit is machine code.
    """
    named = os.environ.get("SLM_CACHE_DIR")
    if named == "":
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(named) if named else Path(base) / "slm"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # the latter for a user without a home
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH):
        return None
    return folder


def compiles_in_background() -> bool:
    """Whether this machine builds units unasked: Linux, a C++ compiler, somewhere to keep them."""
    linux = sys.platform == "linux"
    return linux and hardware.cpp_compiler() is not None and cache_folder() is not None


def unit_key(config: GPTConfig, weights: Format, rows: int) -> str:
    """Names a unit: changes with everything that its machine code depends on."""
    facts = {
        "torch": torch.__version__,
        "cpu": hardware.cpu_identity(),
        "threads": torch.get_num_threads(),
        "code": _code(),
        "config": replace(config, dropout=0.0).to_plain(),
        "weights": weights,
        "rows": rows,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """A digest of the code that a unit is compiled from."""
    package = Path(slm.__file__).parent
    files = sorted([*(package / "model").glob("*.py"), *(package / "generation").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def write_unit(folder: Path, key: str, content: bytes) -> None:
    """Keeps a unit, whole or not at all; its name contains a digest of it."""
    digest = hashlib.sha256(content).hexdigest()[:32]
    temporary = folder / f"{key}.tmp-{os.getpid()}"
    temporary.write_bytes(content)
    temporary.replace(folder / f"{key}-{digest}.pt2")


def find_unit(folder: Path, key: str) -> Path | None:
    """The file of a unit.

    Raises:
        ValueError: It is damaged; it has been removed.
    """
    for path in folder.glob(f"{key}-*.pt2"):
        if hashlib.sha256(path.read_bytes()).hexdigest()[:32] == path.stem.partition("-")[2]:
            return path
        path.unlink()
        raise ValueError(f"{path} is damaged")
    return None


class CompiledDecode(PlainDecode):
    """The decode pass through units, as far as they are built; otherwise the plain one.

    The logits of a row are the same bits whatever the other rows are and however many; they differ
    from the plain pass's by rounding.

    Args:
        model: A network of `for_inference` on a CPU.
        weights: Its number format.
        batch_size: Sequences that are generated together.
        report: Told in a line what the user may want to know.
    """

    def __init__(
        self,
        model: GPT,
        weights: Format,
        batch_size: int = 1,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(model)
        self._report = report
        self._folder = cache_folder()
        self._weights: dict[str, Tensor] | None = None
        self._units: dict[int, torch._C._aoti.AOTIModelPackageLoader] = {}
        self._missing: dict[int, str] = {}
        if any(isinstance(part, InferenceLinear) for part in model.modules()):
            wanted = [rows for rows, least in _WORTH.items() if least <= batch_size]
            for rows in (wanted[-1], *wanted):  # the largest first
                self._missing[rows] = unit_key(model.config, weights, rows)
        self._format = weights
        self._builder: subprocess.Popen[bytes] | None = None
        self._looked = 0.0
        self._load()

    @property
    def ready(self) -> bool:
        """Whether all units are loaded."""
        return not self._missing

    def build(self, wait: bool = False) -> bool:
        """Starts to build the units that are missing, in another process.

        Args:
            wait: Whether to return only when they are ready.

        Returns:
            Whether something is being built, or has been.

        Raises:
            RuntimeError: With `wait`, they cannot be built.
        """
        if self.ready:
            return False
        if wait and not hardware.cpp_compiler():
            raise RuntimeError(f"there is no {hardware.COMPILER}")
        if wait and self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="slm-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        if self._folder is None or not (wait or compiles_in_background()):
            return False
        failed = [self._folder / f"{key}.failed" for key in self._missing.values()]
        if not wait and any(path.exists() for path in failed):
            return False
        request = {
            "folder": str(self._folder),
            "config": self.model.config.to_plain(),
            "weights": self._format,
            "units": list(self._missing.items()),
            "threads": torch.get_num_threads(),
            "wait": wait,
        }
        self._builder = subprocess.Popen(
            [sys.executable, "-m", "slm.generation.building", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if wait else subprocess.DEVNULL,
            start_new_session=True,  # it may survive this process, and its Ctrl-C
        )
        if wait:
            _, errors = self._builder.communicate()
            self._load()
            if not self.ready:
                raise RuntimeError(errors.decode(errors="replace").strip().rpartition("\n")[2])
        return True

    def _load(self) -> None:
        """Loads the units that have been built since."""
        self._looked = time.monotonic()
        if self._folder is None:
            return
        for rows, key in list(self._missing.items()):
            path = None
            try:
                if path := find_unit(self._folder, key):
                    self._units[rows] = self._open(path)
                    del self._missing[rows]
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).partition("\n")[0]
                self._report(f"a compiled pass cannot be used and has been removed: {reason}")
                if path is not None:
                    path.unlink(missing_ok=True)

    def _open(self, path: Path) -> "torch._C._aoti.AOTIModelPackageLoader":
        """Loads a unit, and gives it the weights.

        By torch's loader itself: `torch._inductor.aoti_load_package` imports the compiler, too,
        which takes two seconds.
        """
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        if self._weights is None:
            self._weights = unit_weights(self.model)
        loader.load_constants(self._weights, False, True, True)
        with suppress(OSError):
            os.utime(path)  # it is in use
        return loader

    def rows(self, batch_size: int) -> int:
        """As in `PlainDecode`."""
        return next((rows for rows in _WORTH if rows >= batch_size), round_up(batch_size, 16))

    def __call__(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """As in `PlainDecode`."""
        if self._builder and time.monotonic() - self._looked > _PATIENCE:
            self._look()
        if not self._units or len(tokens) < _WORTH[min(self._units)]:
            return super().__call__(tokens, cache)
        positions = cache.next_positions()
        logits: list[Tensor] = []
        first = 0
        while first < len(tokens):
            fitting = [rows for rows in self._units if _WORTH[rows] <= len(tokens) - first]
            rows = max(fitting, default=min(self._units))
            last = first + rows
            inputs = [
                torch.tensor([*tokens[first:last], *[0] * (last - len(tokens))]),
                torch.tensor(positions[first:last]),
                cache.slots(round_up(max(positions[first : min(last, len(tokens))]) + 1, SLOTS)),
                *cache.parts(first, rows),
            ]
            logits += self._units[rows].run(inputs)
            first = last
        cache.advance(len(tokens))
        return (logits[0] if len(logits) == 1 else torch.cat(logits))[: len(tokens)]

    def _look(self) -> None:
        """Takes up what has been built; says so if that has failed."""
        assert self._builder is not None
        status = self._builder.poll()
        self._load()
        if status is not None:
            self._builder = None
            if status:
                self._report("the decode pass could not be compiled; --compile true says why")
