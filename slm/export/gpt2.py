"""The same network as Hugging Face transformers' GPT-2, where it has the parts for it."""

from typing import Any

import torch
from torch import Tensor

from slm.errors import UserError
from slm.model import GPT, GPTConfig

_AS_GPT2 = {
    "position": "learned",
    "norm": "layer",
    "qk_norm": False,
    "mlp": "gelu",
    "tied": True,
}


def check_is_gpt2(config: GPTConfig) -> None:
    """Compares a shape with what GPT-2 can be.

    Raises:
        UserError: It has a part that GPT-2 lacks.
    """
    for name, value in _AS_GPT2.items():
        if getattr(config, name) != value:
            raise UserError(
                f"a model with {name} {getattr(config, name)}",
                f"{name} {value}, as transformers' GPT-2 has it",
                "a model of configs/small.yaml or configs/medium.yaml",
            )


def to_transformers(model: GPT) -> Any:
    """The network as a `GPT2LMHeadModel` with a copy of the weights, in evaluation mode.

    Raises:
        UserError: transformers is not installed, or its GPT-2 has no such network.
    """
    check_is_gpt2(model.config)
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise UserError(
            "transformers is not installed",
            "the package transformers",
            "pip install 'transformers>=5'",
        ) from error
    config = model.config
    gpt2: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu",  # exact, as ours; GPT-2's own approximates by tanh
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=config.vocab_size - 1,
            eos_token_id=config.vocab_size - 1,
        )
    )
    gpt2.load_state_dict(_state_dict(model), strict=True)
    return gpt2.eval()


def _state_dict(model: GPT) -> dict[str, Tensor]:
    """Weights under GPT-2's names; its linear layers keep them transposed, and have biases."""
    state = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "lm_head.weight": model.token_embedding.weight,
    }
    parts = {"norm": "transformer.ln_f"}
    for layer in range(model.config.n_layer):
        ours, gpt2 = f"blocks.{layer}", f"transformer.h.{layer}"
        parts |= {
            f"{ours}.attention_norm": f"{gpt2}.ln_1",
            f"{ours}.attention.qkv": f"{gpt2}.attn.c_attn",
            f"{ours}.attention.proj": f"{gpt2}.attn.c_proj",
            f"{ours}.mlp_norm": f"{gpt2}.ln_2",
            f"{ours}.mlp.up": f"{gpt2}.mlp.c_fc",
            f"{ours}.mlp.down": f"{gpt2}.mlp.c_proj",
        }
    own = model.state_dict()
    for ours, gpt2 in parts.items():
        weight = own[f"{ours}.weight"]
        state[f"{gpt2}.weight"] = weight.T if weight.dim() == 2 else weight
        state[f"{gpt2}.bias"] = own.get(f"{ours}.bias", torch.zeros(len(weight)))
    return {name: tensor.detach().clone() for name, tensor in state.items()}
