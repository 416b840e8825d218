"""The public architectures that a model of this project can be."""

from dataclasses import asdict
from typing import Literal

from slm.errors import UserError
from slm.model import GPTConfig

Shape = Literal["gpt2", "qwen3", "llama"]
"""By their names in Hugging Face's `config.json`."""

_MODERN: dict[str, str | bool] = {
    "position": "rotary",
    "norm": "rms",
    "mlp": "swiglu",
    "bias": False,
}
FIELDS: dict[Shape, dict[str, str | bool]] = {
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu", "qk_norm": False},
    "qwen3": _MODERN | {"qk_norm": True, "qk_gain": True},
    "llama": _MODERN | {"qk_norm": False},
}
"""The fields of `GPTConfig` that make each of them."""


def public_shape(config: GPTConfig) -> Shape | None:
    """The public architecture that a model is; None if it is none."""
    return next((shape for shape in FIELDS if not _differences(config, shape)), None)


def check_public(config: GPTConfig, *allowed: Shape) -> Shape:
    """The public architecture that a model is.

    Raises:
        UserError: It is none of those that are allowed.
    """
    shape = public_shape(config)
    if shape in allowed:
        return shape
    nearest = min(allowed, key=lambda each: len(_differences(config, each)))
    wrong = _differences(config, nearest)
    raise UserError(
        "a model with " + ", ".join(f"{name} {getattr(config, name)}" for name in wrong),
        f"{', '.join(f'{name} {value}' for name, value in wrong.items())}, as {nearest} has it",
        "a model of configs/small.yaml or configs/modern-20min.yaml; slm export --to onnx, web, pt "
        "and safetensors take every model",
    )


def _differences(config: GPTConfig, shape: Shape) -> dict[str, str | bool]:
    """The fields in which a model differs from a public architecture, with the latter's values."""
    found = asdict(config)
    if found["mlp"] == "gelu_tanh":  # a GPT-2 can have either
        found["mlp"] = "gelu"
    return {name: value for name, value in FIELDS[shape].items() if found[name] != value}
