"""Muon beside AdamW, as one optimizer."""

import copy

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from slm import hardware
from slm.model import GPT, GPTConfig
from slm.training import muon
from slm.training.muon import COEFFICIENTS, Muon, MuonAdamW, hidden_matrices, orthogonalize
from slm.training.optimization import OptimizerOptions, make_optimizer

OPTIONS = OptimizerOptions(
    name="muon", lr=0.01, muon_lr=0.02, weight_decay=0.1, beta1=0.8, beta2=0.95
)


@pytest.fixture
def float32(monkeypatch):
    """A CPU without bfloat16, so that what is compared is the same on all of them."""
    monkeypatch.setattr(hardware, "_cpu_multiplies_bfloat16", lambda: False)


def make_model():
    torch.manual_seed(0)
    return GPT(GPTConfig(8, 30, 2, 2, 16, 0.0, bias=True, tied=False))


def make(model, options=OPTIONS):
    optimizer = make_optimizer(model, options, fused=False)
    assert isinstance(optimizer, MuonAdamW)
    return optimizer


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(30, (4, 8), generator=generator)
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def reference(matrix):
    """The iterations' polynomials of the singular values, in float64."""
    U, s, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.pow(4).sum() ** 0.25
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    return U @ torch.diag(s) @ Vh


@pytest.mark.parametrize("shape", [(24, 24), (24, 30), (24, 96), (96, 24), (1, 7)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_singular_values_go_through_the_polynomials(shape, scale, dtype, tolerance):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * scale
    other = torch.ones(2, 2 * min(shape), min(shape))  # another shape of the same size
    found, _ = orthogonalize([matrices.to(dtype), other.to(dtype)])
    assert found.dtype == dtype
    assert found.shape == matrices.shape
    for matrix, update in zip(matrices, found, strict=True):
        error = (update - reference(matrix)).norm() / reference(matrix).norm()
        assert error < tolerance


@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_bfloat16_stays_close_where_few_directions_have_a_gradient(shape):
    """Tall as well as wide: the order of the factors matters as soon as they are rounded."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(shape[0], 4, generator=generator)
    matrix = (left @ torch.randn(4, shape[1], generator=generator)).bfloat16()
    (found,) = orthogonalize([matrix[None]])
    expected = reference(matrix)
    assert (found[0] - expected).norm() < 0.35 * expected.norm()


def test_the_polynomials_bring_a_hundredth_and_all_above_near_one():
    s = torch.linspace(0.01, 1, 10_000, dtype=torch.float64)
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    assert s.min() > 0.71
    assert s.max() < 1.29


def test_zeros_stay_zeros():
    matrices = torch.zeros(2, 4, 9)
    assert torch.equal(*orthogonalize([matrices]), matrices)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_where_nothing_is_split_the_update_is_torchs(monkeypatch, float32, momentum):
    """Both with iterations enough to end at the nearest orthogonal matrix, and in float32."""
    exact = (1.875, -1.25, 0.375)
    monkeypatch.setattr(muon, "orthogonalize", lambda X: orthogonalize(X, [exact] * 30))
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # torch's is always in it
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 32), (32, 8), (8, 8)]
    ours = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    torchs = [parameter.detach().clone().requires_grad_() for parameter in ours]
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.3}
    mine = Muon([{"params": ours} | options], dict.fromkeys(ours, 1))
    other = torch.optim.Muon(torchs, **options, ns_coefficients=exact, ns_steps=30)
    for _ in range(4):
        for a, b in zip(ours, torchs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_matrices_in_one_parameter_are_orthogonalized_one_by_one():
    gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros(24, 8, requires_grad=True)
    parts = [torch.zeros(8, 8, requires_grad=True) for _ in range(3)]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    whole.grad = gradient
    for part, its_gradient in zip(parts, gradient.chunk(3), strict=True):
        part.grad = its_gradient
    Muon([{"params": [whole]} | options], {whole: 3}).step()
    Muon([{"params": parts} | options], dict.fromkeys(parts, 1)).step()
    torch.testing.assert_close(whole, torch.cat(parts))
    assert whole.abs().min() > 0


@pytest.mark.parametrize(("mlp", "gates"), [("gelu", 1), ("swiglu", 2)])
def test_heads_and_gates_have_matrices_of_their_own(mlp, gates):
    blocks = GPT(GPTConfig(8, 30, 1, 2, 16, 0.0, mlp=mlp)).blocks
    attention, up = blocks[0].attention, blocks[0].mlp.up
    pieces = hidden_matrices(blocks)
    assert pieces.pop(attention.qkv.weight) == 6
    assert pieces.pop(up.weight) == gates
    assert list(pieces.values()) == [1, 1]
    x = torch.randn(1, 8, 16)
    heads = torch.cat(attention.heads(x), dim=1)[0]
    matrices = attention.qkv.weight.view(6, -1, 16)
    torch.testing.assert_close(heads, x @ matrices.mT, msg="in the order the network reads them")


def test_each_parameter_is_trained_once_and_only_the_blocks_matrices_by_muon():
    model = make_model()
    optimizer = make(model)
    owner = {}
    for part in optimizer.parts:
        for group in part.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in owner
                owner[id(parameter)] = (type(part).__name__, group["weight_decay"])
    for name, parameter in model.named_parameters():
        expected = (
            ("Muon", 0.1) if name.startswith("blocks.") and parameter.dim() == 2
            else ("AdamW", 0.1 if parameter.dim() == 2 else 0.0)
        )  # fmt: skip
        assert owner.pop(id(parameter)) == expected, name
    assert not owner


def test_the_update_of_a_hidden_matrix_is_nearly_orthogonal(float32):
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = OptimizerOptions(name="muon", lr=0.01, muon_lr=0.02, weight_decay=0.0)
    train(model, make(model, options), 1)
    up = model.blocks[0].mlp.up.weight.detach() - before["blocks.0.mlp.up.weight"]
    # 64 x 16: the update's singular values are all about lr √(64 / 16); Newton-Schulz is rough,
    # and the layer norm in front leaves one direction without a gradient.
    values = torch.linalg.svdvals(up) / (0.02 * 2)
    assert torch.all((values[:-1] > 0.5) & (values[:-1] < 1.3)), values
    gradients = torch.linalg.svdvals(model.blocks[0].mlp.up.weight.grad)
    assert gradients[0] > 5 * gradients[-2], "which the gradient's are not"
    embedding = model.token_embedding.weight.detach() - before["token_embedding.weight"]
    assert embedding.abs().max() == pytest.approx(0.01, rel=1e-3), "AdamW's first step is lr"


def test_the_rest_is_trained_as_by_adamw_alone():
    """Given the same gradients: the first step, before the matrices have moved."""
    ours, plain = make_model(), make_model()
    train(ours, make(ours), 1)
    train(plain, AdamW(plain.parameters(), lr=0.01, betas=(0.8, 0.95), weight_decay=0.1), 1)
    torch.testing.assert_close(ours.token_embedding.weight, plain.token_embedding.weight)
    torch.testing.assert_close(ours.head.weight, plain.head.weight)


def test_a_schedule_reaches_both_parts():
    model = make_model()
    optimizer = make(model)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    train(model, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.0] * 3
    before = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, train(model, optimizer, 1), strict=True))


def test_restored_it_goes_on_to_the_last_bit():
    whole = make_model()
    expected = train(whole, make(whole), 10)
    part = make_model()
    first = make(part)
    train(part, first, 5)
    saved = copy.deepcopy(first.state_dict())
    again = make_model()
    again.load_state_dict(part.state_dict())
    optimizer = make(again, OptimizerOptions(name="muon", lr=0.5, muon_lr=0.5))
    optimizer.load_state_dict(saved)
    for a, b in zip(expected, train(again, optimizer, 5, start=5), strict=True):
        assert torch.equal(a, b)
    # Without its state it would not: the comparison can fail.
    forgetful = make_model()
    forgetful.load_state_dict(part.state_dict())
    other = train(forgetful, make(forgetful), 5, start=5)
    assert not all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_its_state_is_plain(tmp_path):
    model = make_model()
    optimizer = make(model)
    train(model, optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True)["param_groups"]


def test_the_closure_computes_the_loss():
    """Lightning steps with a closure that computes loss and gradients."""
    ours, plain = make_model(), make_model()

    def closure():
        optimizer.zero_grad()
        loss = ours(torch.arange(8)[None]).logsumexp(-1).mean()
        loss.backward()
        return loss.item()

    optimizer = make(ours)
    loss = optimizer.step(closure)
    expected = plain(torch.arange(8)[None]).logsumexp(-1).mean()
    assert loss == pytest.approx(expected.item())
    expected.backward()
    make(plain).step()
    torch.testing.assert_close(list(ours.parameters()), list(plain.parameters()))
