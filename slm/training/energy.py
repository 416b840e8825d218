"""The energy that a machine uses, as far as it can be read."""

import time
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up the energy of processors and of a GPU.

    Processors count microjoules (RAPL: `energy_uj` of each package, on Linux, if it is readable);
    the counters wrap around at `max_energy_range_uj`, after half an hour or more under load, so
    `read` must be called more often. A CUDA GPU reports its power (through NVML, if `nvidia-ml-py`
    is installed), which is assumed to last until the next reading.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self._device = device
        # Not psys, which counts the packages once more.
        self._counters = {
            folder: joules
            for folder in sorted(powercap.glob("intel-rapl:*"))
            if _read(folder / "name").startswith("package") and (joules := _joules(folder))
        }
        self._since = time.perf_counter()
        self.joules: dict[str, float] = {}  # so far, by what is measured
        if self._counters:
            self.joules["processor"] = 0.0
        if self._watts() is not None:
            self.joules["GPU"] = 0.0

    def read(self) -> None:
        """Adds the energy since the last call."""
        for folder, before in self._counters.items():
            if (now := _joules(folder)) is None:
                continue
            range_ = _joules(folder, "max_energy_range_uj") or 0.0
            self.joules["processor"] += now - before if now >= before else now - before + range_
            self._counters[folder] = now
        seconds = time.perf_counter() - self._since
        self._since += seconds
        if "GPU" in self.joules and (watts := self._watts()) is not None:
            self.joules["GPU"] += watts * seconds

    def _watts(self) -> float | None:
        if self._device.type != "cuda":
            return None
        try:
            return float(torch.cuda.power_draw(self._device)) / 1000
        except Exception:  # NVML has errors of its own, and a meter must not stop a run
            return None


def _joules(folder: Path, counter: str = "energy_uj") -> float | None:
    """Joules of a counter; None if it is not readable."""
    text = _read(folder / counter).strip()
    return int(text) / 1e6 if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
