"""What all verbs that generate stories share: which model, where and how it is computed."""

import sys
import warnings
from dataclasses import dataclass
from typing import Literal

from slm.commands.lookup import open_named
from slm.commands.parsing.device import DeviceOptions
from slm.errors import UserError, user_errors
from slm.generation.compiled import CompiledDecode, compiles_in_background
from slm.generation.decode import GraphDecode, PlainDecode
from slm.generation.quantization import Quantization, for_inference, resolve_quantization
from slm.generation.storyteller import Storyteller
from slm.model import GPT
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
    """Number format of the weights: fp32 as trained, bf16 faster, int8 the fastest on CPUs. `auto`
    takes int8 on a CPU where --compile auto compiles, else bf16 where the device multiplies it
    natively, else fp32."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to compile the pass that generates a token, two to three times as fast on a CPU, once
    for a shape of model: `auto` does that in the background, after the stories, for the next
    runs, if this is a CPU under Linux with a C++ compiler; true waits for it, half a minute or
    more."""
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
            UserError: The device does not have it, or cannot be compiled for.
        """
        compiles = self.compile is not False and self.device == "cpu" and compiles_in_background()
        weights = "int8" if self.weights == "auto" and compiles else self.weights
        with user_errors("slm predict --help explains it"):
            weights = resolve_quantization(weights, self.device)
        if self.compile is True and self.device == "mps":
            raise UserError("--compile true on mps", "a CPU or a CUDA device", "without --compile")
        return weights

    def load(self, stories: int | None = None) -> tuple[Checkpoint, Storyteller]:
        """Opens the checkpoint, and makes its network ready to generate.

        Args:
            stories: How many stories there will be, if that is known.

        Raises:
            UserError: There is no such checkpoint, or an option does not fit the device.
        """
        weights = self.resolve_weights()
        checkpoint = open_named(self.ckpt_path, self.trainer.logs)
        tokenizer = checkpoint.make_tokenizer()
        model = for_inference(checkpoint.make_model(), weights, self.device)
        batch_size = min(self.rows, stories or self.rows)
        decode = make_decode(model, weights, self.device, batch_size, self.compile)
        return checkpoint, Storyteller(model, tokenizer, decode)


def make_decode(
    model: GPT,
    weights: Literal["fp32", "bf16", "int8"],
    device: str,
    batch_size: int,
    compile: bool | Literal["auto"],
) -> PlainDecode:
    """How a network of `for_inference` runs its decode pass; see `InferenceOptions.compile`."""
    if device == "cuda" and compile is True:
        for message in ("TensorFloat32 tensor cores", "The CUDA Graph is empty"):
            warnings.filterwarnings("ignore", message)  # harmless, from torch.compile
        return GraphDecode(model)
    if device != "cpu" or compile is False:
        return PlainDecode(model)
    decode = CompiledDecode(model, weights, batch_size, _report)
    if compile is True and not decode.ready:
        _report("compiling, once for this shape of model and number format …")
        try:
            decode.build(wait=True)
        except RuntimeError as error:
            raise UserError(
                f"the decode pass cannot be compiled: {error}",
                "a C++ compiler that works",
                "do not compile: --compile false",
            ) from error
    return decode


def compile_in_background(decode: PlainDecode | None) -> None:
    """Starts to compile what `--compile auto` uses, and says so.

    When no story is being generated: it would take a third longer.
    """
    if isinstance(decode, CompiledDecode) and decode.build():
        _report("compiling in the background, for the next runs, once for this shape of model")


def _report(line: str) -> None:
    print(f"Compile    {line}", file=sys.stderr, flush=True)


def check_takes_words(takes_words: bool) -> None:
    """Raises a UserError if a model has not been trained on stories with requests."""
    if not takes_words:
        raise UserError(
            "words for a model that was trained on stories without requests",
            "a model trained with --data.request words",
            "slm fit --data.request words …; docs/data.md describes it",
        )
