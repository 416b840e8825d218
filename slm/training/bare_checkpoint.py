"""Checkpoints without a run: weights and tokenizer, to generate with and to fine-tune."""

import io
from importlib.metadata import version
from pathlib import Path

import torch

from slm.data.tokenizer import CHECKPOINT_KEY, Tokenizer
from slm.model import GPT
from slm.training.checkpoint import FORMAT_VERSION


def save_bare(
    path: Path,
    model: GPT,
    tokenizer: Tokenizer,
    origin: str | None,
    step: int = 0,
    request: str | None = None,
) -> None:
    """Writes a checkpoint without optimizer, data or path of this machine.

    Args:
        path: The file.
        model: The network, in float32.
        tokenizer: Its vocabulary.
        origin: Where the weights come from; None means trained from scratch.
        step: Optimizer steps trained.
        request: The option `data.request` of its training.
    """
    config = model.config
    contents = {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "callbacks": {},
        "hyper_parameters": {"gpt": config.to_plain()},
        "datamodule_hyper_parameters": {
            "tokenizer": tokenizer.name,
            "vocab_size": config.vocab_size,
            "block_size": config.block_size,
            "request": request,
        },
        CHECKPOINT_KEY: {
            "format_version": FORMAT_VERSION,
            "tokenizer": tokenizer.to_plain(),
            "data": None,
            "training": {},
            "origin": origin,
        },
    }
    written = io.BytesIO()  # torch's own errors do not say that a disk is full
    torch.save(contents, written)
    path.write_bytes(written.getbuffer())
