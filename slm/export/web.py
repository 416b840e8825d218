"""The target `web`: one HTML file with the weights, the tokenizer and the network in JavaScript."""

import base64
import json
import math
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.export.target import Logits, Target, TrainedModel
from slm.generation.quantization import quantize
from slm.model import GPT, GPTConfig

_NAME = "index.html"


def _write(trained: TrainedModel, folder: Path) -> None:
    model = trained.model
    about = {
        "config": model.config.to_plain(),
        "tensors": [
            {"name": name, "shape": list(tensor.shape)}
            for name, tensor in model.state_dict().items()
        ],
        # A character for each byte.
        "tokens": [token.decode("latin-1") for token in trained.tokenizer.token_bytes],
    }
    sources = files("slm.export") / "page"
    parts = {
        "title": escape(trained.checkpoint.label),
        "description": escape(
            f"A small GPT in your browser: {model.parameter_counts().tied / 1e6:.1f} M parameters "
            "as 8-bit integers. Nothing leaves this page."
        ),
        # Within a script element, no text may begin like the end of one.
        "about": json.dumps(about, ensure_ascii=False).replace("<", "\\u003c"),
        "weights": base64.b64encode(_pack(model)).decode(),
        "network": (sources / "network.js").read_text(encoding="utf-8"),
        "page": (sources / "page.js").read_text(encoding="utf-8"),
    }
    template = (sources / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{(\w+)\}", lambda mark: parts.get(mark[1], mark[0]), template)
    (folder / _NAME).write_text(page, encoding="utf-8")


def _pack(model: GPT) -> bytes:
    """The weights: every vector and each matrix's scales in float32, then the 8-bit integers."""
    floats, integers = [], []
    for tensor in model.state_dict().values():
        if tensor.dim() == 2:
            integers_NK, scales_N = quantize(tensor)
            integers.append(integers_NK)
            floats.append(scales_N.float())
        else:
            floats.append(tensor.float())
    return b"".join(part.numpy().tobytes() for part in (*floats, *integers))


def _unpack(packed: bytes, tensors: list[dict[str, Any]]) -> dict[str, Tensor]:
    floats = sum(each["shape"][0] for each in tensors)
    scales = torch.from_numpy(np.frombuffer(packed, "<f4", floats).copy())
    integers = torch.from_numpy(np.frombuffer(packed, np.int8, offset=4 * floats).copy())
    state, float_, integer = {}, 0, 0
    for each in tensors:
        rows, *columns = each["shape"]
        values = scales[float_ : float_ + rows]
        float_ += rows
        if columns:
            count = rows * columns[0]
            values = integers[integer : integer + count].view(rows, -1) * values[:, None]
            integer += count
        state[each["name"]] = values
    return state


def _reopen(folder: Path) -> Mapping[str, Logits]:
    return {_NAME: torch.inference_mode()(read_page(folder / _NAME))}


def read_page(path: Path) -> GPT:
    """The network in a page, with its rounded weights."""
    text = path.read_text(encoding="utf-8")
    scripts = dict(re.findall(r'<script type="[^"]+" id="(\w+)">(.*?)</script>', text, re.DOTALL))
    about = json.loads(scripts["about"])
    model = GPT(GPTConfig(**about["config"]))
    model.load_state_dict(_unpack(base64.b64decode(scripts["weights"]), about["tensors"]))
    return model.eval()


WEB = Target(_write, _reopen, lambda name: math.inf)
