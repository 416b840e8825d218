"""The callbacks of `fit` around each training step."""

from lightning.pytorch import Callback, Trainer

from slm.hardware import describe_device
from slm.training.callbacks.curves import TrainingCurves
from slm.training.callbacks.memory import ManualGarbageCollection, ReuseMemory
from slm.training.callbacks.progress import ProgressLine
from slm.training.callbacks.stories import SampledStories
from slm.training.callbacks.validation import LastStep, PendingValidation


def standard_callbacks(curves: TrainingCurves, progress: bool = True) -> list[Callback]:
    """The callbacks around each step, apart from those that save.

    In this order: `LastStep` first, because the others ask it whether to stop.
    """
    return [
        LastStep(),
        ReuseMemory(),
        curves,
        SampledStories(),
        ManualGarbageCollection(),
        *([ProgressLine(curves)] if progress else []),
        PendingValidation(),
    ]


def describe_devices(trainer: Trainer) -> str:
    """The devices that a Trainer uses, in a few words."""
    device = trainer.strategy.root_device
    count = f"{trainer.num_devices} x " if device.type == "cuda" else ""
    return count + describe_device(device)
