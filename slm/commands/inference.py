"""What all verbs that generate stories share: which model, where and how it is computed."""

import warnings
from dataclasses import dataclass
from typing import Literal

from slm.commands.lookup import open_named
from slm.commands.parsing.device import DeviceOptions
from slm.errors import UserError, user_errors
from slm.generation.quantization import (
    Quantization,
    can_compile,
    for_inference,
    resolve_quantization,
)
from slm.generation.storyteller import Storyteller
from slm.training.checkpoint import Checkpoint

BATCH_SIZES = {"cpu": 16, "mps": 64, "cuda": 256}
"""Sequences that are generated together, by device."""


@dataclass(frozen=True)
class InferenceOptions:
    """Which model generates, and how it is computed."""

    ckpt_path: str | None = None
    """A checkpoint file, a run, or `last` or `best` of the newest run, which is also the
    default."""
    weights: Quantization = "auto"
    """Number format of the weights: fp32 as trained, bf16 faster, int8 the fastest for one or two
    stories at a time, on CPUs; `auto` takes bf16 where the device multiplies it natively, else
    fp32."""
    compile: bool = False
    """Whether to generate through torch.compile; takes some ten seconds before the first story,
    pays for many on a GPU, and with --weights int8."""
    batch_size: int | None = None
    """Stories generated together at most; null takes 16 on a CPU, 256 on a CUDA GPU. On a CPU no
    story depends on it."""
    trainer: DeviceOptions = DeviceOptions()

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch_size {self.batch_size}; 1 or more")

    @property
    def device(self) -> str:
        """The kind of device."""
        return self.trainer.device.type

    @property
    def rows(self) -> int:
        """How many stories to generate together."""
        return self.batch_size or BATCH_SIZES[self.device]

    def resolve_weights(self) -> Literal["fp32", "bf16", "int8"]:
        """The number format.

        Raises:
            UserError: The device does not have it, or it cannot be compiled.
        """
        with user_errors("slm predict --help explains it"):
            weights = resolve_quantization(self.weights, self.device)
        if self.compile and not can_compile(weights, self.device):
            raise UserError(
                f"--compile true with weights {weights} on {self.device}",
                "int8 on a CPU, or a CUDA device",
                "--weights int8, or without --compile",
            )
        return weights

    def load(self) -> tuple[Checkpoint, Storyteller]:
        """Opens the checkpoint, and makes its network ready to generate.

        Raises:
            UserError: There is no such checkpoint, or an option does not fit the device.
        """
        weights = self.resolve_weights()
        checkpoint = open_named(self.ckpt_path, self.trainer.logs)
        model = for_inference(checkpoint.make_model(), weights, self.device)
        for message in ("TensorFloat32 tensor cores", "The CUDA Graph is empty"):
            warnings.filterwarnings("ignore", message)  # harmless, from torch.compile
        return checkpoint, Storyteller(model, checkpoint.make_tokenizer())


def check_takes_words(takes_words: bool) -> None:
    """Raises a UserError if a model has not been trained on stories with requests."""
    if not takes_words:
        raise UserError(
            "words for a model that was trained on stories without requests",
            "a model trained with --data.request words",
            "slm fit --data.request words …; docs/data.md describes it",
        )
