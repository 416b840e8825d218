"""The callbacks around each step of `fit`."""

from lightning.pytorch import Callback, Trainer

from slm.hardware import describe_device
from slm.training.callbacks.curves import TrainingCurves
from slm.training.callbacks.garbage_collection import ManualGarbageCollection
from slm.training.callbacks.progress import ProgressLine
from slm.training.callbacks.stories import SampledStories
from slm.training.callbacks.validation import LastStep, PendingValidation


def standard_callbacks(curves: TrainingCurves, progress: bool = True) -> list[Callback]:
    """What `fit` hangs around each step, apart from checkpoints; in this order.

    The last step comes first: the others ask it whether this step is the last.

    Args:
        curves: The curves, of which the progress line reads.
        progress: Whether there is a progress line.
    """
    line: list[Callback] = [ProgressLine(curves)] if progress else []
    return [
        LastStep(),
        curves,
        SampledStories(),
        ManualGarbageCollection(),
        *line,
        PendingValidation(),
    ]


def describe_devices(trainer: Trainer) -> str:
    """The devices in words, for the head of a run."""
    device = trainer.strategy.root_device
    count = f"{trainer.num_devices} x " if device.type == "cuda" else ""
    return count + describe_device(device)
