"""The options that say where to compute."""

from dataclasses import dataclass

import torch

from slm.commands.parsing.options import RootOptions
from slm.errors import UserError
from slm.hardware import Accelerator, find_device


@dataclass(frozen=True)
class AcceleratorOptions:
    """Where to compute."""

    accelerator: Accelerator = "auto"
    """The device; `auto` takes the best one."""

    @property
    def device(self) -> torch.device:
        """The device."""
        try:
            return find_device(self.accelerator)
        except ValueError as error:
            raise UserError.from_value_error(
                error, "--trainer.accelerator auto takes what there is"
            ) from error


@dataclass(frozen=True)
class DeviceOptions(AcceleratorOptions, RootOptions):
    """Where to compute, and where runs are."""
