"""The target `gguf`: files for llama.cpp and Ollama."""

import errno
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.data.tokenizer import END_OF_TEXT, Tokenizer
from slm.errors import UserError
from slm.export.shapes import FIELDS, Shape, check_public
from slm.export.target import Logits, Target, TrainedModel
from slm.export.tokenizer_json import merges, vocabulary
from slm.export.weights import from_public, to_public
from slm.model import GPT, GPTConfig

_FORMATS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
"""What the files are called, and what llama.cpp calls it."""
_Q8_BLOCK = 32
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # kinds of tokens

_MODELFILE = """\
FROM ./model-q8_0.gguf
TEMPLATE "{{{{ .Prompt }}}}"
PARAMETER num_ctx {context}
PARAMETER temperature 0.8
PARAMETER top_k 50
PARAMETER stop "{end}"
"""


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "gguf is not installed",
            "the package gguf",
            "pip install 'slm-stories[export]', or gguf",
        ) from error
    return gguf


# ---- writing -----------------------------------------------------------------------------------


def _write(trained: TrainedModel, folder: Path) -> None:
    check_public(trained.model.config, "gpt2", "qwen3")
    write_gguf(trained.model, trained.tokenizer, folder, trained.checkpoint.label, list(_FORMATS))
    context = trained.model.config.block_size
    modelfile = _MODELFILE.format(context=context, end=END_OF_TEXT)
    (folder / "Modelfile").write_text(modelfile, encoding="utf-8")


def write_gguf(
    model: GPT, tokenizer: Tokenizer, folder: Path, label: str, formats: Sequence[str]
) -> None:
    """Writes `model-FORMAT.gguf` for some of the number formats f32, f16 and q8_0.

    Raises:
        UserError: GGUF has no such shape of network, or the package gguf is missing.
    """
    gguf, config = _import_gguf(), model.config
    shape = check_public(config, "gpt2", "qwen3")
    for name in formats:
        with closing(gguf.GGUFWriter(folder / f"model-{name}.gguf", shape)) as writer:
            writer.add_name(label)
            writer.add_file_type(gguf.LlamaFileType[_FORMATS[name]])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_shape(writer, config)
            _add_tokenizer(writer, tokenizer)
            for tensor, values, kind in _tensors(model, shape, name):
                packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
                writer.add_tensor(tensor, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            try:
                writer.write_tensors_to_file()
            except OSError as error:  # NumPy leaves out why
                raise OSError(error.errno or errno.ENOSPC, str(error)) from error


def _add_shape(writer: Any, config: GPTConfig) -> None:
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_feed_forward_length(config.hidden_width)
    writer.add_vocab_size(config.vocab_size)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_head_count_kv(config.n_head)
    head_size = config.n_embd // config.n_head
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(10_000.0)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    kinds = [_NORMAL if token else _UNUSED for token in tokenizer.token_bytes]
    kinds[tokenizer.end_of_text] = _CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary(tokenizer))
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer)])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(True)


def _tensors(
    model: GPT, shape: Shape, number_format: str
) -> Iterator[tuple[str, np.ndarray[Any, Any], str]]:
    """Each tensor's name in a GGUF file, its values and its number format."""
    names = _import_gguf().get_tensor_name_map(_architecture(shape), model.config.n_layer)
    for name, tensor in to_public(model).items():
        values = tensor.T if _is_transposed(name) else tensor
        kind = "F32"
        if tensor.dim() == 2 and "wpe" not in name:  # llama.cpp adds positions in float32
            fits = values.size(1) % _Q8_BLOCK == 0
            kind = "F16" if number_format == "q8_0" and not fits else number_format.upper()
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        yield gguf_name, values.contiguous().numpy(), kind


def _architecture(shape: Shape) -> Any:
    return _import_gguf().MODEL_ARCH[shape.upper()]


def _is_transposed(name: str) -> bool:
    """Whether GPT-2 keeps this matrix transposed, which a GGUF file does not."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


# ---- reading -----------------------------------------------------------------------------------


def _reopen(folder: Path) -> Mapping[str, Logits]:
    names = [f"model-{name}.gguf" for name in _FORMATS]
    return {name: torch.inference_mode()(read_gguf(folder / name)) for name in names}


def read_gguf(path: Path) -> GPT:
    """The network in a file that this module wrote, its weights in float32."""
    gguf = _import_gguf()
    reader = gguf.GGUFReader(path)
    shape: Shape = reader.get_field("general.architecture").contents()

    def field(name: str) -> Any:
        return reader.get_field(f"{shape}.{name}").contents()

    norm = "layer_norm_epsilon" if shape == "gpt2" else "layer_norm_rms_epsilon"
    tensors = {each.name: each for each in reader.tensors}
    fields: dict[str, Any] = FIELDS[shape] | {"dropout": 0.0}
    if shape == "gpt2":
        fields |= {"bias": True, "mlp": "gelu_tanh"}  # always, in llama.cpp
    config = GPTConfig(
        block_size=field("context_length"),
        vocab_size=field("vocab_size"),
        n_layer=field("block_count"),
        n_head=field("attention.head_count"),
        n_embd=field("embedding_length"),
        mlp_width=field("feed_forward_length"),
        norm_eps=field(f"attention.{norm}"),
        tied="output.weight" not in tensors,
        **fields,
    )
    model = GPT(config).eval()
    names = gguf.get_tensor_name_map(_architecture(shape), config.n_layer)
    state = {}
    for name in to_public(model):
        each = tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        values = gguf.quants.dequantize(each.data, each.tensor_type)
        tensor: Tensor = torch.from_numpy(values.astype(np.float32))
        state[name] = tensor.T if _is_transposed(name) else tensor
    model.load_state_dict(from_public(state, config))
    return model


# For GPT-2's architecture it includes the difference between exact GELU and its approximation.
GGUF = Target(_write, _reopen, lambda name: 0.05 if "f32" in name else math.inf)
