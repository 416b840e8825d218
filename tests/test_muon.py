"""Muon beside AdamW, as one optimizer."""

import copy

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from slm.model import GPT, GPTConfig
from slm.training.muon import MuonAdamW
from slm.training.optimization import OptimizerOptions, make_optimizer

OPTIONS = OptimizerOptions(
    name="muon", lr=0.01, muon_lr=0.02, weight_decay=0.1, beta1=0.8, beta2=0.95
)


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


def test_the_update_of_a_hidden_matrix_is_nearly_orthogonal():
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
