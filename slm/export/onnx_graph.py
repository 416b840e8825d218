"""The target `onnx`: graphs for ONNX Runtime and transformers.js, in float32 and in 8 bits.

One graph reads prompts and continues them. Its names are those that transformers.js looks up:

    input_ids (B, T), attention_mask (B, S), position_ids (B, T): int64
    past_key_values.N.key and .value (B, H, P, D): what layer N has stored; P is 0 at first
    logits (B, T, V), present.N.key and .value (B, H, S, D): what to pass the next time

Shape suffixes: B batch, T tokens of this pass, P tokens before it, S both, H heads, D head size,
V vocabulary.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm.errors import UserError
from slm.export.hugging_face import write_configs
from slm.export.shapes import public_shape
from slm.export.target import Logits, Target, TrainedModel
from slm.model import GPT

_FLOAT, _QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
"""Where transformers.js looks for dtype "fp32" and "q8"."""


def _import_onnx() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime."""
    try:
        import onnx
        import onnxruntime.quantization
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed",
            "the packages onnx, onnxscript and onnxruntime",
            "pip install 'slm-stories[export]'",
        ) from error
    return onnx, onnxruntime


# ---- writing -----------------------------------------------------------------------------------


def _write(trained: TrainedModel, folder: Path) -> None:
    onnx, _ = _import_onnx()
    if (length := trained.model.config.block_size) < 3:
        raise UserError(
            f"a model with a context of {length}",
            "3 tokens or more: torch's exporter treats smaller sizes as constants",
            "slm export --to pt, or a model with a longer context",
        )
    if public_shape(trained.model.config):
        write_configs(trained, folder)
    (folder / "onnx").mkdir()
    with _quiet():
        graph = _to_onnx(trained.model)
        onnx.save(graph, folder / _FLOAT)
        _quantize(graph, folder / _QUANTIZED)


class TensorCache:
    """An `AttentionCache` of plain tensors: earlier keys and values come in, longer ones go out.

    Padding, where the attention mask is 0, gets no attention, wherever it is.
    """

    def __init__(self, past: list[Tensor], positions: Tensor, attention_mask: Tensor) -> None:
        self.positions = positions
        self._past = past
        self.present: list[Tensor] = []
        """Keys and values of each layer in turn, (B, H, S, D), as in the past."""
        P, S = past[0].size(2), past[0].size(2) + positions.size(1)
        causal_TS = torch.arange(S) <= torch.arange(P, S).unsqueeze(1)
        allowed_B1TS = causal_TS & attention_mask.bool()[:, None, None, :]
        # Not -inf: a token of padding attends to nothing else, and its outputs must not be NaN.
        self._mask_B1TS = torch.where(allowed_B1TS, 0.0, torch.finfo(torch.float32).min)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Appends keys and values, and attends to all: (B, H, T, D) each."""
        past_BHPD = self._past[2 * layer : 2 * layer + 2]
        keys_BHSD, values_BHSD = (
            torch.cat(pair, dim=2) for pair in zip(past_BHPD, (keys, values), strict=True)
        )
        self.present += keys_BHSD, values_BHSD
        return F.scaled_dot_product_attention(queries, keys_BHSD, values_BHSD, self._mask_B1TS)


class CachedGPT(nn.Module):
    """The network with its cache among inputs and outputs."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the cache for the next pass."""
        cache = TensorCache(past, position_ids, attention_mask)
        return self.model.unembed(self.model.hidden(input_ids, cache)), cache.present


def _to_onnx(model: GPT) -> Any:
    """The graph, an `onnx.ModelProto`."""
    config = model.config
    layers = [f"{n}.{part}" for n in range(config.n_layer) for part in ("key", "value")]
    B, T, P = 2, 3, 4  # any sizes; 0 and 1 would become constants
    # Three tensors: the exporter takes one that is passed twice for one input.
    tokens, positions, mask = (torch.zeros(B, n, dtype=torch.int64) for n in (T, T, P + T))
    past = [torch.zeros(B, config.n_head, P, config.n_embd // config.n_head) for _ in layers]
    batch = {0: "batch_size"}  # by this name transformers.js makes the first, empty cache
    step = batch | {1: "sequence_length"}
    program = torch.onnx.export(
        CachedGPT(model).eval(),
        (tokens, mask, positions, past),
        input_names=[
            *("input_ids", "attention_mask", "position_ids"),
            *(f"past_key_values.{layer}" for layer in layers),
        ],
        output_names=["logits", *(f"present.{layer}" for layer in layers)],
        dynamic_shapes=(step, batch | {1: "total"}, step, [batch | {2: "past"}] * len(layers)),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    for node in graph.graph.node:
        node.ClearField("metadata_props")  # stack traces, with the paths of this installation
    return graph


def _quantize(model: Any, path: Path) -> None:
    """Writes the graph with 8-bit matrices and activations, and changes it on the way.

    Weights are unsigned: sums of products of signed bytes saturate on x86 without VNNI.
    """
    onnx, onnxruntime = _import_onnx()
    heads = _copy_transposed(model.graph)
    onnxruntime.quantization.quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul", "Gather"],
        weight_type=onnxruntime.quantization.QuantType.QUInt8,
    )
    quantized = onnx.load(path)
    _share_transposed(quantized.graph, heads)
    onnx.save(quantized, path)


def _copy_transposed(graph: Any) -> dict[str, str]:
    """Replaces transposed weights by copies, which the quantizer can process.

    Returns:
        The names of the copies, and what each is a copy of: a tied head's is the embedding's.
    """
    onnx, _ = _import_onnx()
    weights = {weight.name: weight for weight in graph.initializer}
    copies = {}
    for node in [each for each in graph.node if each.op_type == "Transpose"]:
        if weight := weights.get(node.input[0]):
            values = onnx.numpy_helper.to_array(weight).T.copy()
            graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)
            copies[node.output[0]] = node.input[0]
    return copies


def _share_transposed(graph: Any, copies: Mapping[str, str]) -> None:
    """Removes the copies of matrices that are stored anyway; a runtime makes them on loading."""
    onnx, _ = _import_onnx()
    weights = {weight.name: weight for weight in graph.initializer}
    for copy, source in copies.items():
        source, copy = f"{source}_quantized", f"{copy}_quantized"
        if source in weights:
            graph.initializer.remove(weights[copy])
            graph.node.insert(0, onnx.helper.make_node("Transpose", [source], [copy], perm=[1, 0]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what exporter and quantizer log and warn of."""
    root, handler, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)  # logging.info would add one that prints, for good
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


# ---- reading -----------------------------------------------------------------------------------


def _reopen(folder: Path) -> Mapping[str, Logits]:
    return {name: read_onnx(folder / name) for name in (_FLOAT, _QUANTIZED)}


def read_onnx(path: Path) -> Logits:
    """The network in a file that this module wrote, without its cache, in ONNX Runtime."""
    _, onnxruntime = _import_onnx()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    caches = session.get_inputs()[3:]

    def logits(tokens: Tensor) -> Tensor:
        B, T = tokens.shape
        feeds = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "position_ids": torch.arange(T).expand(B, T),
        } | {each.name: torch.zeros(B, each.shape[1], 0, each.shape[3]) for each in caches}
        (found,) = session.run(["logits"], {name: each.numpy() for name, each in feeds.items()})
        return torch.from_numpy(found)

    return logits


ONNX = Target(_write, _reopen, lambda name: 1e-3 if name == _FLOAT else math.inf)
