"""GGUF files: what is in them, and what llama.cpp makes of them."""

import pytest
import torch
from conftest import make_stories

from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export.gguf_files import GGUF, read_gguf
from slm.export.target import TrainedModel
from slm.generation import SamplingOptions, generate
from slm.model import GPT, GPTConfig
from slm.training.checkpoint import Checkpoint

gguf = pytest.importorskip("gguf")

MODERN = {"position": "rotary", "norm": "rms", "qk_norm": True, "qk_gain": True, "mlp": "swiglu"}
SHAPES = {"classic": {}, "modern": MODERN, "untied": MODERN | {"tied": False}}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(make_stories(300), 400)


def make_model(options, width=64):
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, 400, 2, 2, width, 0.0, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def exported(request, tokenizer, tmp_path_factory):
    """A model, and the folder of its files."""
    model, folder = make_model(request.param), tmp_path_factory.mktemp("gguf")
    # llama.cpp joins tokens until their bytes are UTF-8: the logits of others are zero.
    incomplete = [not token.isascii() for token in tokenizer.token_bytes]
    model.head_weight.data[incomplete] = 0
    checkpoint = Checkpoint(folder / "run" / "checkpoints" / "best.ckpt", {"global_step": 7})
    GGUF.write(TrainedModel(checkpoint, model, tokenizer), folder)
    return model, folder


def test_float32_weights_are_ours(exported):
    model, folder = exported
    own, found = model.state_dict(), read_gguf(folder / "model-f32.gguf").state_dict()
    assert all(torch.equal(found[name], own[name]) for name in own)
    added = found.keys() - own.keys()
    assert all(name.endswith(".bias") and not found[name].any() for name in added)


def test_eight_bits_are_half_of_sixteen_and_close(exported):
    model, folder = exported
    own, found = model.state_dict(), read_gguf(folder / "model-q8_0.gguf").state_dict()
    for name, weight in own.items():
        step = weight.abs().max() / 127
        assert (found[name] - weight).abs().max() <= 0.51 * step + 1e-3 * weight.abs().max(), name
    f16, q8 = (folder / f"model-{name}.gguf" for name in ("f16", "q8_0"))
    tensors = {each.name: each.tensor_type.name for each in gguf.GGUFReader(q8).tensors}
    assert tensors["blk.0.ffn_up.weight"] == "Q8_0"
    assert q8.stat().st_size < 0.75 * f16.stat().st_size


def test_a_width_that_eight_bits_cannot_hold_is_kept_in_sixteen(tokenizer, tmp_path):
    model = make_model(MODERN, width=40)
    checkpoint = Checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", {"global_step": 7})
    GGUF.write(TrainedModel(checkpoint, model, tokenizer), tmp_path)
    reader = gguf.GGUFReader(tmp_path / "model-q8_0.gguf")
    tensors = {each.name: each.tensor_type.name for each in reader.tensors}
    assert tensors["blk.0.attn_q.weight"] == "F16"
    assert tensors["blk.0.ffn_down.weight"] == "Q8_0"


def test_other_shapes_are_refused(tokenizer, tmp_path):
    model = make_model({"position": "rotary"})
    with pytest.raises(UserError, match="position rotary"):
        GGUF.write(TrainedModel(Checkpoint(tmp_path, {}), model, tokenizer), tmp_path)


def run_llama_cpp(path, prompt, count):
    """Tokens that llama.cpp finds likeliest, with their log-probabilities."""
    llama = pytest.importorskip("xllamacpp")
    options = llama.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.warmup, options.verbosity = 64, 1, False, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    request = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "n_probs": 1}
    found = llama.Server(options).handle_completions(request | {"ignore_eos": True})
    return [(each["id"], each["logprob"]) for each in found["choices"][0]["logprobs"]["content"]]


def test_llama_cpp_generates_the_same_tokens(exported):
    model, folder = exported
    prompt = [399, 72, 105]
    found = run_llama_cpp(folder / "model-f32.gguf", prompt, 40)
    greedy = SamplingOptions(temperature=0, max_new_tokens=40, min_new_tokens=40)
    assert [token for token, _ in found] == generate(model, prompt, greedy, stop_id=399)


def test_llama_cpp_is_close_with_eight_bits(exported):
    path, prompt = exported[1] / "model-q8_0.gguf", [399, 72, 105]
    [(token, log_prob)] = run_llama_cpp(path, prompt, 1)
    log_probs = read_gguf(path)(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    assert log_prob == pytest.approx(log_probs[token].item(), abs=0.1)  # it rounds activations, too
