"""The weights under the names of Hugging Face's architectures, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slm.export.shapes import public_shape
from slm.model import GPT, GPTConfig

State = dict[str, Tensor]


def to_public(model: GPT) -> State:
    """A model's weights under its public architecture's names; a tied head occurs once."""
    own = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if public_shape(model.config) == "gpt2":
        return _to_gpt2(own, model.config)
    return _to_qwen3(own, model.config)


def from_public(state: Mapping[str, Tensor], config: GPTConfig) -> State:
    """The inverse of `to_public`: weights under our names, those of `config` only.

    Raises:
        KeyError: A weight is missing.
    """
    if public_shape(config) == "gpt2":
        return _from_gpt2(state, config)
    return _from_qwen3(state, config)


# ---- GPT-2 --------------------------------------------------------------------------------


def _gpt2_layers(config: GPTConfig) -> dict[str, str]:
    """Our names and GPT-2's of the layers with a weight and perhaps a bias."""
    layers = {"norm": "transformer.ln_f"}
    for layer in range(config.n_layer):
        ours, gpt2 = f"blocks.{layer}", f"transformer.h.{layer}"
        layers |= {
            f"{ours}.attention_norm": f"{gpt2}.ln_1",
            f"{ours}.attention.qkv": f"{gpt2}.attn.c_attn",
            f"{ours}.attention.proj": f"{gpt2}.attn.c_proj",
            f"{ours}.mlp_norm": f"{gpt2}.ln_2",
            f"{ours}.mlp.up": f"{gpt2}.mlp.c_fc",
            f"{ours}.mlp.down": f"{gpt2}.mlp.c_proj",
        }
    return layers


def _gpt2_embeddings(config: GPTConfig) -> dict[str, str]:
    names = {
        "token_embedding.weight": "transformer.wte.weight",
        "position_embedding.weight": "transformer.wpe.weight",
    }
    return names if config.tied else names | {"head.weight": "lm_head.weight"}


def _to_gpt2(own: State, config: GPTConfig) -> State:
    """GPT-2's linear layers keep their matrices transposed, and have biases."""
    state = {gpt2: own[ours] for ours, gpt2 in _gpt2_embeddings(config).items()}
    for ours, gpt2 in _gpt2_layers(config).items():
        weight = own[f"{ours}.weight"]
        state[f"{gpt2}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
        state[f"{gpt2}.bias"] = own.get(f"{ours}.bias", torch.zeros(len(weight)))
    return state


def _from_gpt2(state: Mapping[str, Tensor], config: GPTConfig) -> State:
    own = {ours: state[gpt2] for ours, gpt2 in _gpt2_embeddings(config).items()}
    for ours, gpt2 in _gpt2_layers(config).items():
        weight = state[f"{gpt2}.weight"]
        own[f"{ours}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
        if config.bias:
            own[f"{ours}.bias"] = state[f"{gpt2}.bias"]
    return own


# ---- Qwen3, and Llama, which lacks QK-norm --------------------------------------------------


def _qwen3_names(config: GPTConfig) -> dict[str, list[str]]:
    """Our names, and Qwen3's of the matrices that ours stack along their rows."""
    names = {"token_embedding.weight": ["model.embed_tokens.weight"]}
    names["norm.weight"] = ["model.norm.weight"]
    if not config.tied:
        names["head.weight"] = ["lm_head.weight"]
    for layer in range(config.n_layer):
        ours, qwen3 = f"blocks.{layer}", f"model.layers.{layer}"
        parts = {
            "attention_norm": ["input_layernorm"],
            "attention.qkv": [f"self_attn.{part}_proj" for part in "qkv"],
            "attention.proj": ["self_attn.o_proj"],
            "mlp_norm": ["post_attention_layernorm"],
            "mlp.up": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.down": ["mlp.down_proj"],
        }
        if config.qk_gain:
            parts |= {f"attention.{part}_norm": [f"self_attn.{part}_norm"] for part in "qk"}
        for name, stacked in parts.items():
            names[f"{ours}.{name}.weight"] = [f"{qwen3}.{part}.weight" for part in stacked]
    return names


def _to_qwen3(own: State, config: GPTConfig) -> State:
    return {
        name: part.contiguous()
        for ours, names in _qwen3_names(config).items()
        for name, part in zip(names, own[ours].chunk(len(names)), strict=True)
    }


def _from_qwen3(state: Mapping[str, Tensor], config: GPTConfig) -> State:
    return {
        ours: torch.cat([state[name] for name in names])
        for ours, names in _qwen3_names(config).items()
    }
