"""Models from Hugging Face folders: GPT-2, Qwen3, and Llama's shape."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export.shapes import FIELDS, Shape
from slm.export.tokenizer_json import from_json
from slm.export.weights import State, from_public
from slm.files import parse_json
from slm.model import GPT, GPTConfig


@dataclass(frozen=True)
class ImportedModel:
    """What was found in a folder."""

    model: GPT
    tokenizer: Tokenizer
    model_type: str
    """Its architecture's name in the folder's `config.json`."""


def read_folder(folder: Path) -> ImportedModel:
    """Reads a model as transformers saves it: config, safetensors, byte-level BPE.

    Raises:
        UserError: Something is missing or damaged, or cannot be represented.
    """
    plain = _read_json(folder, "config.json")
    if plain is None:
        raise UserError(
            f"{folder} is not a model: there is no config.json",
            "a folder that transformers saved: config.json, model.safetensors, tokenizer.json",
            "name the folder itself, such as hf:downloads/model",
        )
    config = _read_config(folder, plain)
    state = _read_weights(folder)
    n_vocab = len(_embedding(state, folder))
    tokenizer, ids = from_json(folder / "tokenizer.json", _end_of_text(folder, plain), n_vocab)
    own = _to_own(state, config, folder)
    config = replace(config, vocab_size=n_vocab, bias=_has_bias(own))
    _check_weights(own, config, folder)
    for name in own.keys() & {"token_embedding.weight", "head.weight"}:
        own[name] = own[name][ids]
    model = GPT(config).eval()
    model.load_state_dict({name: own[name] for name in model.state_dict()})
    return ImportedModel(model, tokenizer, plain["model_type"])


def _read_json(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    if not path.is_file():
        return None
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError.unreadable(path, error) from error
    if not isinstance(found, dict):
        raise _cannot(folder, f"a {name} that is no object")
    return found


def _cannot(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} has {what}",
        "a GPT-2, Qwen3 or Llama model that slm can represent",
        "another model; docs/export.md lists what can be imported",
    )


# ---- config ------------------------------------------------------------------------------------

_REQUIRED: dict[Shape, dict[str, Any]] = {
    "gpt2": {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "qwen3": {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
}
"""What must be so in `config.json`, where it is named."""
_GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def _read_config(folder: Path, plain: dict[str, Any]) -> GPTConfig:
    shape = plain.get("model_type")
    if not isinstance(shape, str) or shape not in FIELDS:
        raise _cannot(folder, f"model_type {shape!r}")
    required = _REQUIRED[shape] | {"quantization_config": None}
    for name, value in required.items():
        if plain.get(name, value) != value:
            raise _cannot(folder, f"{name} {plain[name]}, not {value}")
    try:
        found = _gpt2_config(plain) if shape == "gpt2" else _llama_config(plain, shape)
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "mlp_width"):
            if not isinstance(found[name], int | None):
                raise ValueError(f"{found[name]!r}, which is no whole number, as {name}")
        return GPTConfig(**FIELDS[shape] | {"dropout": 0.0} | found)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _cannot(folder, f"a config.json with {what}") from error


def _gpt2_config(plain: dict[str, Any]) -> dict[str, Any]:
    activation = plain.get("activation_function", "gelu_new")
    if activation not in _GELU:
        raise ValueError(f"activation_function {activation}")
    return {
        "block_size": plain["n_positions"],
        "vocab_size": plain["vocab_size"],
        "n_layer": plain["n_layer"],
        "n_head": plain["n_head"],
        "n_embd": plain["n_embd"],
        "mlp": _GELU[activation],
        "mlp_width": plain.get("n_inner"),
        "norm_eps": plain.get("layer_norm_epsilon", 1e-5),
        "bias": True,
        "tied": plain.get("tie_word_embeddings", True),
    }


def _llama_config(plain: dict[str, Any], shape: Shape) -> dict[str, Any]:
    width, heads = plain["hidden_size"], plain["num_attention_heads"]
    rope = plain.get("rope_parameters") or plain.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rotary positions {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", plain.get("rope_theta", 10_000.0))
    if kind != "default" or base != 10_000 or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"rotary positions of type {kind} with base {base}, not default and 10000")
    head_size = plain.get("head_dim") or (128 if shape == "qwen3" else width // heads)
    if head_size * heads != width:
        raise ValueError(f"{heads} heads of {head_size} channels for a width of {width}")
    return {
        "block_size": plain["max_position_embeddings"],
        "vocab_size": plain["vocab_size"],
        "n_layer": plain["num_hidden_layers"],
        "n_head": heads,
        "n_embd": width,
        "mlp_width": plain["intermediate_size"],
        "norm_eps": plain.get("rms_norm_eps", 1e-6),
        "tied": plain.get("tie_word_embeddings", False),
    }


def _end_of_text(folder: Path, plain: dict[str, Any]) -> str | int:
    """The token that ends a text, or its id."""
    named = (_read_json(folder, "tokenizer_config.json") or {}).get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    ids = plain.get("eos_token_id")
    found = named or (ids[0] if isinstance(ids, list) and ids else ids)
    if not isinstance(found, str | int):
        raise _cannot(folder, "no end-of-text token: eos_token in tokenizer_config.json")
    return found


# ---- weights -----------------------------------------------------------------------------------


def _read_weights(folder: Path) -> State:
    index = _read_json(folder, "model.safetensors.index.json") or {}
    files = index.get("weight_map", {})
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise _cannot(folder, "an index without a map from weights to files")
    names = set(files.values()) or {"model.safetensors"}
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise UserError(
            f"{folder} has no {missing[0]}"
            + (f", only {pickled[0]}: a pickle, which can run arbitrary code" if pickled else ""),
            "weights as safetensors",
            "convert it where you trust it: transformers.AutoModelForCausalLM.from_pretrained("
            f"{str(folder)!r}).save_pretrained({str(folder) + '-safetensors'!r})",
        )
    state: State = {}
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt") as file:
                state |= {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError.unreadable(folder / name, error) from error
    return state


def _embedding(state: Mapping[str, Tensor], folder: Path) -> Tensor:
    for name in ("transformer.wte.weight", "wte.weight", "model.embed_tokens.weight"):
        if name in state:
            return state[name]
    raise _cannot(folder, "no token embedding among its weights")


def _to_own(state: State, config: GPTConfig, folder: Path) -> State:
    """The weights under our names; each head has keys and values of its own."""
    if "wte.weight" in state:  # saved without the head, as OpenAI's GPT-2
        state = {f"transformer.{name}": tensor for name, tensor in state.items()}
    try:
        used = _Recorded(_repeat_shared_heads(state, config))
        own = from_public(used, config)
    except KeyError as error:
        raise _cannot(folder, f"no weight {error}") from error
    except RuntimeError as error:
        raise _cannot(folder, f"weights that do not fit config.json: {error}") from error
    masks = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "lm_head.weight")
    if rest := sorted(name for name in state.keys() - used.names if not name.endswith(masks)):
        raise _cannot(folder, f"weights that slm's model does not have: {', '.join(rest[:3])}")
    return own


def _check_weights(own: State, config: GPTConfig, folder: Path) -> None:
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    for name, tensor in expected.items():
        if own[name].shape != tensor.shape:
            found = f"{tuple(own[name].shape)}, not {tuple(tensor.shape)}, for {name}"
            raise _cannot(folder, f"weights that do not fit config.json: {found}")
        if not own[name].isfinite().all():
            raise _cannot(folder, f"weights that are not finite, for {name}")


class _Recorded(dict[str, Tensor]):
    """Weights that remember which of them were read."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return super().__getitem__(name)


def _repeat_shared_heads(state: State, config: GPTConfig) -> State:
    """Gives every head its keys and values, where heads share them.

    Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245); the network stays the same.
    """
    repeated = {}
    for name, tensor in state.items():
        if name.endswith((".k_proj.weight", ".v_proj.weight")) and len(tensor) < config.n_embd:
            heads_GDC = tensor.view(-1, config.n_embd // config.n_head, config.n_embd)
            tensor = heads_GDC.repeat_interleave(config.n_head // len(heads_GDC), 0).flatten(0, 1)
        repeated[name] = tensor
    return repeated


def _has_bias(own: State) -> bool:
    """Whether any bias is not zero; `to_public` writes zeros for a model without biases."""
    return any(tensor.any() for name, tensor in own.items() if name.endswith(".bias"))
