"""Networks as ONNX graphs: what ONNX Runtime computes from them."""

import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_stories
from torch.nn import functional as F

from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export.target import TrainedModel
from slm.model import GPT, GPTConfig

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import onnxruntime

from slm.export.onnx_graph import ONNX

SHAPE = {
    "block_size": 24, "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 32, "dropout": 0.1,
}  # fmt: skip
SWITCHES = {
    "gpt2": {},
    "qwen3": {
        "position": "rotary", "norm": "rms", "qk_norm": True, "qk_gain": True, "mlp": "swiglu",
    },
    "other": {"bias": True, "position": "rotary", "qk_norm": True, "tied": False},
}  # fmt: skip
FLOAT, QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
CONFIGS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@dataclass
class Exported:
    name: str
    model: GPT
    folder: Path
    printed: str

    def __post_init__(self):
        path = self.folder / FLOAT
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, tokens, past=None, mask=None):
        """Logits and cache of one pass, its inputs made as transformers.js makes them."""
        inputs = self.session.get_inputs()[3:]
        if past is None:  # dimensions of a name that it does not know become 0
            sizes = {"batch_size": len(tokens)}
            shapes = [
                [sizes.get(n, 0) if isinstance(n, str) else n for n in i.shape] for i in inputs
            ]
            past = [np.zeros(shape, np.float32) for shape in shapes]
        if mask is None:
            mask = torch.ones(len(tokens), past[0].shape[2] + tokens.size(1), dtype=torch.int64)
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)[:, -tokens.size(1) :]
        feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        feeds = {name: tensor.numpy() for name, tensor in feeds.items()}
        feeds |= {each.name: values for each, values in zip(inputs, past, strict=True)}
        logits, *present = self.session.run(None, feeds)
        return torch.from_numpy(logits), present


def write(switches, folder):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, **switches)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    ONNX.write(TrainedModel(None, model, Tokenizer.train(make_stories(50), 300)), folder)
    return model


@pytest.fixture(scope="module", params=SWITCHES)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    capture.read_global_capture()
    with warnings.catch_warnings(record=True) as warned, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])  # as outside of pytest
        model = write(SWITCHES[request.param], folder)
        left = logging.root.handlers
    printed = "".join([*capture.read_global_capture(), *map(str, warned + left)])
    return Exported(request.param, model, folder, printed)


@pytest.fixture
def tokens():
    return torch.randint(300, (3, 24), generator=torch.Generator().manual_seed(1))


def ours(exported, tokens):
    with torch.inference_mode():
        return exported.model(tokens)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 7), (3, 1), (3, 24)])
def test_the_logits_are_equal(exported, tokens, B, T):
    logits, present = exported(tokens[:B, :T])
    torch.testing.assert_close(logits, ours(exported, tokens[:B, :T]), rtol=1e-5, atol=3e-5)
    assert [part.shape for part in present] == [(B, 2, T, 16)] * 4


@pytest.mark.parametrize("B", [1, 3])
def test_cached_steps_equal_the_whole_pass(exported, tokens, B):
    parts, past = [], None
    for step in tokens[:B].split([5, 1, 1, 10, 1, 6], dim=1):
        logits, past = exported(step, past)
        parts.append(logits)
    whole = ours(exported, tokens[:B])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=3e-5)


def test_left_padding_changes_nothing(exported, tokens):
    lengths = (6, 1, 4)
    prompts = tokens[:, :6].clone()  # padded with tokens that would be seen
    mask = torch.ones(3, 6, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, : 6 - length] = 0
    logits, past = exported(prompts, mask=mask)
    mask = torch.cat((mask, torch.ones(3, 1, dtype=torch.int64)), dim=1)
    following, _ = exported(tokens[:, 6:7], past, mask)
    both = torch.cat((logits, following), dim=1)
    for row, length in enumerate(lengths):
        alone = ours(exported, tokens[row : row + 1, 6 - length : 7])[0]
        torch.testing.assert_close(both[row, -length - 1 :], alone, rtol=1e-5, atol=3e-5)


def test_the_eight_bit_file_predicts_nearly_the_same(exported, tokens):
    networks = ONNX.reopen(exported.folder)
    exact = {name: ONNX.tolerance(name) < 0.01 for name in networks}
    assert exact == {FLOAT: True, QUANTIZED: False}
    expected = ours(exported, tokens)
    for name, most in ((FLOAT, 1e-6), (QUANTIZED, 0.03)):
        logits = torch.cat([networks[name](row[None]) for row in tokens])
        found, wanted = logits.log_softmax(dim=-1), expected.log_softmax(dim=-1)
        extra_loss = F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean()
        assert abs(extra_loss) < most


def test_each_matrix_is_stored_once_and_in_the_file(exported):
    parameters = sum(parameter.numel() for parameter in exported.model.parameters())
    for name, size in ((FLOAT, 4), (QUANTIZED, 1)):
        weights = onnx.load(exported.folder / name, load_external_data=False).graph.initializer
        stored = sum(len(weight.raw_data) for weight in weights)
        assert size * parameters < stored < 1.15 * size * parameters


def test_the_folder(exported):
    files = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*.*")}
    assert files == {FLOAT, QUANTIZED} | (set() if exported.name == "other" else CONFIGS)
    for name in (FLOAT, QUANTIZED):
        assert b".py" not in (exported.folder / name).read_bytes()


def test_nothing_is_printed(exported):
    assert exported.printed == ""


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed(?s:.*)slm-stories\[export\]"):
        write({}, tmp_path)
    assert not list(tmp_path.iterdir())
