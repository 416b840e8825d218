"""Quantization: memory, speed on this machine, and what the results equal."""

import pytest
import torch
from conftest import needs_bf16

from slm import hardware
from slm.generation import SamplingOptions
from slm.generation.decode import GraphDecode
from slm.generation.engine import Engine, TokenSequence
from slm.generation.quantization import (
    InferenceLinear,
    Int8Linear,
    PackedBf16Linear,
    PackedLinear,
    for_inference,
    native_formats,
    quantize,
    resolve_quantization,
)
from slm.model import GPT, GPTConfig

CLASSIC = GPTConfig(
    block_size=40, vocab_size=90, n_layer=2, n_head=2, n_embd=32, dropout=0.2, bias=True
)
MODERN = GPTConfig(
    block_size=40, vocab_size=90, n_layer=2, n_head=2, n_embd=32, position="rotary",
    norm="rms", qk_norm=True, mlp="swiglu", tied=False,
)  # fmt: skip


def make_model(config):
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_quantizing_errs_by_half_a_step_at_most():
    weight = torch.randn(50, 70, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[3] = 0.0
    integers, scales = quantize(weight)
    assert integers.dtype == torch.int8
    assert integers.abs().max() == 127
    steps = scales.float()[:, None]
    # The largest of a channel may have to stay below 127.5 steps of a scale rounded down.
    assert ((integers * steps - weight).abs() <= 0.51 * steps + 1e-12).all()
    assert (integers[3] == 0).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 40])
@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (PackedLinear, 1e-6),
        pytest.param(PackedBf16Linear, 1e-2, marks=needs_bf16),
        (Int8Linear, 2e-2),
    ],
)
def test_a_fast_layer_computes_what_the_layer_computes(kind, tolerance, rows):
    """And the same bits for a row, however many there are."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 48, generator=generator), torch.randn(24, generator=generator)
    x = torch.randn(rows, 1, 48, generator=generator)
    layer = kind(weight, bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    found = layer(x)
    assert found.shape == expected.shape
    scale = expected.abs().max()
    torch.testing.assert_close(found.float() / scale, expected / scale, atol=tolerance, rtol=0)
    for row in range(rows):
        assert torch.equal(layer(x[row : row + 1]), found[row : row + 1])


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [("fp32", 1e-5), pytest.param("bf16", 0.03, marks=needs_bf16), ("int8", 0.05)],
)
def test_fast_weights_give_the_networks_logits(config, weights, tolerance):
    model = make_model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = for_inference(model, weights, "cpu")
    tokens = torch.randint(90, (3, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model(tokens), fast(tokens).float()
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, atol=tolerance, rtol=0)
    assert weights == "fp32" or not torch.equal(found, expected), "they are different arithmetic"
    layers = [part for part in fast.modules() if isinstance(part, InferenceLinear)]
    assert len(layers) == 4 * 2 + 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def read(weights):
    parts = for_inference(make_model(CLASSIC), weights, "cpu").modules()
    return sum(part.n_bytes for part in parts if isinstance(part, InferenceLinear))


@needs_bf16
def test_bf16_reads_half_of_the_bytes():
    assert read("bf16") == read("fp32") / 2


def test_int8_reads_a_quarter_of_the_bytes():
    assert read("fp32") / 4 < read("int8") < read("fp32") / 3.5


@pytest.mark.parametrize("native", [True, False])
def test_what_auto_means(monkeypatch, native):
    monkeypatch.setattr(hardware, "multiplies_natively", lambda dtype, device: native)
    expected = "bf16" if native else "fp32"
    assert resolve_quantization("auto", "cpu") == resolve_quantization("auto", "cuda") == expected
    assert resolve_quantization("int8", "cpu") == "int8"
    assert native_formats("cpu") == (["fp32", "bf16", "int8"] if native else ["fp32", "int8"])
    assert native_formats("cuda") == (["fp32", "bf16"] if native else ["fp32"])


def test_formats_that_a_device_lacks_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="int8 on cuda"):
        resolve_quantization("int8", "cuda")
    monkeypatch.setattr(hardware, "packs_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="bf16 on a CPU for which oneDNN has none; fp32 or int8"):
        resolve_quantization("bf16", "cpu")


def generate(model, decode=None, rows=3):
    options = SamplingOptions(temperature=0, max_new_tokens=50)
    batch = Engine(model, 7, rows, decode)
    stories = [TokenSequence([1 + n] * (1 + 5 * n), options) for n in range(5)]
    waiting = list(stories)
    while waiting or len(batch):
        while waiting and batch.free:
            batch.admit([waiting.pop(0)])
        batch.step()
    return [story.tokens for story in stories]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_generates_what_the_cpu_does(compile):
    model = make_model(CLASSIC)
    ours = generate(for_inference(model, "fp32", "cpu"))
    fast = for_inference(model, "fp32", "cuda")
    assert generate(fast, GraphDecode(fast) if compile else None) == ours
