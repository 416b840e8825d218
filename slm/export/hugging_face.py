"""The target `hf`: a folder for Hugging Face transformers, without foreign code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from slm.data.tokenizer import END_OF_TEXT
from slm.errors import UserError
from slm.export.shapes import check_public
from slm.export.target import Logits, Target, TrainedModel
from slm.export.tokenizer_json import to_json
from slm.export.weights import to_public
from slm.files import json_text
from slm.model import GPT, GPTConfig


def _write(trained: TrainedModel, folder: Path) -> None:
    write_configs(trained, folder)
    weights = save(to_public(trained.model), {"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)


def write_configs(trained: TrainedModel, folder: Path) -> None:
    """Writes everything but the weights: the configs of model, generation and tokenizer."""
    config = trained.model.config
    end_of_text = trained.tokenizer.end_of_text
    files = {
        "config.json": json_text(architecture(config)),
        "generation_config.json": json_text(
            _special_ids(end_of_text)
            | {"do_sample": True, "temperature": 0.8, "top_k": 50, "max_length": config.block_size}
        ),
        "tokenizer.json": to_json(trained.tokenizer),
        "tokenizer_config.json": json_text(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_bos_token": True,  # transformers.js ignores tokenizer.json's post-processor
                "bos_token": END_OF_TEXT,
                "eos_token": END_OF_TEXT,
                "pad_token": END_OF_TEXT,
                "model_max_length": config.block_size,
                "clean_up_tokenization_spaces": False,
            }
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def architecture(config: GPTConfig) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
        UserError: The model is of no public architecture.
    """
    shape = check_public(config, "gpt2", "qwen3", "llama")
    common = {
        "model_type": shape,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "dtype": "float32",
    } | _special_ids(config.vocab_size - 1)
    if shape == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.hidden_width,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new" if config.mlp == "gelu_tanh" else "gelu",
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    return common | {
        "architectures": [f"{shape.capitalize()}ForCausalLM"],
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": config.n_embd // config.n_head,
        "intermediate_size": config.hidden_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "attention_bias": False,
        "attention_dropout": config.dropout,
    }


def _special_ids(end_of_text: int) -> dict[str, Any]:
    return {f"{name}_token_id": end_of_text for name in ("bos", "eos", "pad")}


# ---- reading -----------------------------------------------------------------------------------


def import_transformers() -> Any:
    """The package transformers, without its progress bars and warnings.

    Raises:
        UserError: It is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "transformers is not installed",
            "the package transformers",
            "pip install 'slm-stories[export]', or 'transformers>=5'",
        ) from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def to_transformers(model: GPT) -> Any:
    """The network as a model of transformers with the same weights, in evaluation mode.

    Raises:
        UserError: transformers is not installed, or has no such network.
    """
    facts = architecture(model.config)
    transformers = import_transformers()
    config = transformers.AutoConfig.for_model(**facts)
    reference = transformers.AutoModelForCausalLM.from_config(config)
    state = to_public(model)
    if model.config.tied:
        embedding = next(name for name in state if "embed_tokens" in name or "wte" in name)
        state["lm_head.weight"] = state[embedding]
    reference.load_state_dict(state, strict=True)
    return reference.eval()


def _reopen(folder: Path) -> Mapping[str, Logits]:
    transformers = import_transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"transformers {transformers.__version__} does not open what was written: {error}",
            "transformers 5 or newer",
            "pip install --upgrade transformers",
        ) from error

    @torch.inference_mode()
    def logits(tokens: Tensor) -> Tensor:
        found: Tensor = model(tokens).logits
        return found

    return {"model.safetensors": logits}


HUGGING_FACE = Target(_write, _reopen, lambda name: 1e-3)
