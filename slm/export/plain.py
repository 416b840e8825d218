"""The targets `pt` and `safetensors`: the weights alone, under this project's names."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from slm.export.target import Logits, Target, TrainedModel
from slm.model import GPT, GPTConfig

_PT = "best_model_params.pt"
_SAFETENSORS = "model.safetensors"


def _write_pt(trained: TrainedModel, folder: Path) -> None:
    written = io.BytesIO()  # torch's own errors do not say that a disk is full
    torch.save(trained.model.state_dict(), written)
    (folder / _PT).write_bytes(written.getbuffer())
    _write_config(trained, folder)


def _write_config(trained: TrainedModel, folder: Path) -> None:
    text = json.dumps(trained.model.config.to_plain(), indent=1) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _reopen_pt(folder: Path) -> Mapping[str, Logits]:
    model = GPT(GPTConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    model.load_state_dict(torch.load(folder / _PT, weights_only=True))
    return {_PT: torch.inference_mode()(model.eval())}


def _write_safetensors(trained: TrainedModel, folder: Path) -> None:
    metadata = {"format": "pt", "config": json.dumps(trained.model.config.to_plain())}
    (folder / _SAFETENSORS).write_bytes(save(trained.model.state_dict(), metadata))


def _reopen_safetensors(folder: Path) -> Mapping[str, Logits]:
    with safe_open(folder / _SAFETENSORS, "pt") as file:
        model = GPT(GPTConfig(**json.loads(file.metadata()["config"])))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return {_SAFETENSORS: torch.inference_mode()(model.eval())}


PT = Target(_write_pt, _reopen_pt, lambda name: 1e-4)
SAFETENSORS = Target(_write_safetensors, _reopen_safetensors, lambda name: 1e-4)
