"""The options that say where to compute."""

from dataclasses import dataclass

import torch

from slm.commands.parsing.options import RootOptions
from slm.errors import user_errors
from slm.hardware import Accelerator, find_device


@dataclass(frozen=True)
class AcceleratorOptions:
    """Where to compute."""

    accelerator: Accelerator = "auto"
    """The device; `auto` takes the best one."""

    @property
    @user_errors("--trainer.accelerator auto takes what there is")
    def device(self) -> torch.device:
        """The device."""
        return find_device(self.accelerator)


@dataclass(frozen=True)
class DeviceOptions(AcceleratorOptions, RootOptions):
    """Where to compute, and where runs are."""
