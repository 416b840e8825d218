"""What a machine has drawn from the socket, as far as it says."""

import time
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up the energy of processors and of a GPU.

    Processors count microjoules (RAPL: `energy_uj` of each package, on Linux, where it may be
    read); counters begin again at `max_energy_range_uj`, after half an hour or more under load, so
    `read` has to be called more often than that. A CUDA GPU says its power (through NVML, if
    `nvidia-ml-py` is installed), which is taken to last until the next reading.

    Args:
        device: Where training runs.
        powercap: The folder of the counters.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self._device = device
        # Not psys, which counts the packages once more.
        packages = [each for each in sorted(powercap.glob("intel-rapl:*")) if _is_package(each)]
        self._counters = {folder: value for folder in packages if (value := _count(folder))}
        self._since = time.perf_counter()
        self.joules: dict[str, float] = {}
        """So far, by what was measured; empty if nothing can be."""
        if self._counters:
            self.joules["processor"] = 0.0
        if self._watts() is not None:
            self.joules["GPU"] = 0.0

    def read(self) -> None:
        """Adds what has been drawn since the last call."""
        for folder, before in self._counters.items():
            now = _count(folder)
            if now is None:
                continue
            range_ = _count(folder, "max_energy_range_uj") or 0.0
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


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:
        return False


def _count(folder: Path, name: str = "energy_uj") -> float | None:
    """Joules of a counter; None where it may not be read."""
    try:
        return int((folder / name).read_text()) / 1e6
    except (OSError, ValueError):
        return None
