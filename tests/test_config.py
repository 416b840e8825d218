"""The switches of the architecture: what each does, and what holds for all of them."""

from contextlib import nullcontext
from dataclasses import asdict

import pytest
import torch
from conftest import plain_attention
from torch.nn import functional as F

from slm.generation import SamplingOptions, generate
from slm.model import GPT, GPTConfig
from slm.model.gpt import MLP, rotary_angles, rotate

SHAPE = {
    "block_size": 12, "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.0,
}  # fmt: skip
SWITCHES = {
    "classic": {},
    "rotary": {"position": "rotary"},
    "rms": {"norm": "rms"},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"mlp": "swiglu"},
    "untied": {"tied": False},
    "modern": {
        "position": "rotary",
        "norm": "rms",
        "qk_norm": True,
        "mlp": "swiglu",
    },
}


def make_model(switches, seed=0, opinionated=True):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**SHAPE, **switches)).eval()
    for parameter in model.parameters() if opinionated else ():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=SWITCHES.values(), ids=SWITCHES)
def switches(request):
    return request.param


def test_causality_by_gradients(switches):
    model, seen = make_model(switches), {}
    model.token_embedding.register_forward_hook(
        lambda module, inputs, output: seen.update(x=output.detach().requires_grad_()) or seen["x"]
    )
    logits = model(torch.arange(12)[None])
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), seen["x"], retain_graph=True)
        influence = gradient[0].abs().sum(dim=1)
        assert torch.all(influence[t + 1 :] == 0), f"position {t} sees the future"
        assert torch.all(influence[: t + 1] > 0), f"position {t} does not see all of its past"


def test_the_kernel_equals_plain_attention_in_values_and_gradients(switches):
    results = []
    for how in (nullcontext, plain_attention):
        model = make_model(switches)
        with how():
            logits = model(torch.arange(24).view(2, 12))
        logits.square().mean().backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_generation_takes_what_the_whole_pass_says(switches):
    model, tokens = make_model(switches), [1, 2]
    for token in generate(model, tokens, SamplingOptions(temperature=0, max_new_tokens=8)):
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)
    assert len(tokens) == 10


def test_the_order_of_earlier_tokens_matters(switches):
    model = make_model(switches)
    there, back = (model(torch.tensor([row]))[0, -1] for row in ([1, 2, 3, 4], [3, 2, 1, 4]))
    assert not torch.allclose(there, back, atol=1e-3)


def test_the_classic_model_is_as_it_was():
    """A checkpoint from before the switches has just these weights."""
    names = set(make_model({}).state_dict())
    assert {name for name in names if not name.startswith("blocks.")} == {
        "token_embedding.weight", "position_embedding.weight", "norm.weight",
    }  # fmt: skip
    assert {name.removeprefix("blocks.0.") for name in names if "blocks.0." in name} == {
        "attention_norm.weight", "attention.qkv.weight", "attention.proj.weight",
        "mlp_norm.weight", "mlp.up.weight", "mlp.down.weight",
    }  # fmt: skip
    before = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias"}
    old = {name: value for name, value in asdict(GPTConfig()).items() if name in before}
    assert GPTConfig(**old) == GPTConfig()


def test_rotation_is_that_of_complex_numbers():
    x, angles = torch.randn(2, 3, 7, 8), rotary_angles(7, 8)
    turned = rotate(x, angles)
    frequencies = torch.tensor([10_000.0 ** (-2 * r / 8) for r in range(4)])
    factors = torch.polar(torch.ones(7, 4), torch.outer(torch.arange(7.0), frequencies))
    expected = torch.complex(x[..., :4], x[..., 4:]) * factors
    torch.testing.assert_close(torch.complex(turned[..., :4], turned[..., 4:]), expected)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 8).expand(1, 1, 9, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 9, 8)
    angles = rotary_angles(9, 8)
    scores = (rotate(q, angles) @ rotate(k, angles).transpose(-2, -1))[0, 0]
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[8, 0] != pytest.approx(scores[0, 0].item(), abs=1e-3)


def test_qk_norm_takes_the_scale_of_queries_and_keys_away():
    def logits(qk_norm, factor):
        model = make_model({"qk_norm": qk_norm})
        for block in model.blocks:
            block.attention.qkv.weight.data[:32] *= factor  # the rows of queries and keys
        return model(torch.arange(12)[None])

    torch.testing.assert_close(logits(True, 1.0), logits(True, 7.0), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits(False, 1.0), logits(False, 7.0), atol=1e-2)


def test_rms_norm_divides_by_the_root_mean_square():
    norm = GPT(GPTConfig(**SHAPE, norm="rms")).norm
    x = torch.randn(5, 16) * 3 + 1
    torch.testing.assert_close(norm(x), x / x.square().mean(-1, keepdim=True).sqrt())


def test_the_nonlinearities():
    x = torch.randn(4, 16)
    for kind in ("gelu", "swiglu"):
        mlp = MLP(GPTConfig(**SHAPE, mlp=kind))
        up = mlp.up(x)
        gate, value = up.chunk(2, -1)
        hidden = {
            "gelu": F.gelu(up),
            "swiglu": gate * torch.sigmoid(gate) * value,
        }[kind]
        torch.testing.assert_close(mlp(x), mlp.down(hidden))


def test_swiglu_has_as_many_parameters():
    plain, gated = (
        GPT(GPTConfig(mlp=mlp)).parameter_counts().without_embeddings for mlp in ("gelu", "swiglu")
    )
    assert gated == pytest.approx(plain, rel=0.005)


def test_an_untied_head_is_its_own():
    tied, untied = make_model({}), make_model({"tied": False})
    a, b = tied.parameter_counts(), untied.parameter_counts()
    assert (a.without_embeddings, a.tied, a.untied) == (b.without_embeddings, b.tied, b.untied)
    assert sum(p.numel() for p in tied.parameters()) == a.tied
    assert sum(p.numel() for p in untied.parameters()) == a.untied == a.tied + 50 * 16
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(untied.unembed(hidden), hidden @ untied.head.weight.T)
    assert "head of its own" in str(b)
    assert "if it were untied" in str(a)


def test_positions_that_are_turned_have_no_parameters():
    learned, rotary = (
        make_model({"position": p}).parameter_counts() for p in ("learned", "rotary")
    )
    assert learned.without_embeddings == rotary.without_embeddings
    assert learned.tied == rotary.tied + 12 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 6, "n_head": 2, "position": "rotary"}, "3 channels"),
        ({"norm": "batch"}, "norm is batch; it must be layer or rms"),
        ({"mlp": "tanh"}, "mlp is tanh"),
    ],
)
def test_switches_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**SHAPE | options)
