"""The chunked loss against the plain one: same loss, same gradients."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from slm.model import GPT, GPTConfig
from slm.model.reference import next_token_loss
from slm.training.loss import LinearCrossEntropy, NextTokenLoss, rows_at_once, softmax_gradient_

SHAPE = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.0}
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="torch.compile needs a C++ compiler"
)


def plain_loss(hidden, weight, targets):
    return next_token_loss(
        lambda hidden: F.linear(hidden, weight).float()[None], hidden, targets[None]
    )


def make_input(positions=40, vocab_size=50, dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    hidden = scale * torch.randn(positions, 16, dtype=dtype)
    weight = torch.randn(vocab_size, 16, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(vocab_size, (positions,))


def gradients(loss, *of):
    return torch.autograd.grad(loss, of)


@pytest.mark.parametrize("rows", [1, 7, 20, 40, 1000])
@pytest.mark.parametrize("vocab_size", [50, 64, 9000])
def test_loss_and_gradients_are_the_plain_ones(rows, vocab_size):
    hidden, weight, targets = make_input(vocab_size=vocab_size)
    plain = plain_loss(hidden, weight, targets)
    ours = LinearCrossEntropy.apply(hidden, weight, targets, rows, softmax_gradient_, {})
    torch.testing.assert_close(ours, plain)
    for mine, reference in zip(
        gradients(3 * ours, hidden, weight), gradients(3 * plain, hidden, weight), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_in_double_precision_to_the_last_digits():
    hidden, weight, targets = make_input(dtype=torch.float64)
    plain = F.cross_entropy(F.linear(hidden, weight), targets)
    ours = LinearCrossEntropy.apply(hidden, weight, targets, 16, softmax_gradient_, {})
    for mine, reference in zip(
        (ours, *gradients(ours, hidden, weight)),
        (plain, *gradients(plain, hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_in_bfloat16_gradients_are_as_good_as_the_plain_ones(scale):
    """Also where nearly all is known: p - 1 of the target must not be lost in rounding."""
    hidden, weight, targets = make_input(scale=scale)
    with torch.no_grad():
        targets = (hidden @ weight.T).argmax(1) if scale > 1 else targets
    exact = gradients(plain_loss(hidden, weight, targets), hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(plain_loss(hidden, weight, targets), hidden, weight)
        loss = LinearCrossEntropy.apply(hidden, weight, targets, 16, softmax_gradient_, {})
    ours = gradients(loss, hidden, weight)
    for mine, reference, truth in zip(ours, plain, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - truth).norm() < 1.2 * (reference - truth).norm() + 1e-3 * truth.norm()


def test_the_graph_is_used_once_and_a_second_time_is_refused():
    """The factor is multiplied in in place."""
    hidden, weight, targets = make_input()
    loss = LinearCrossEntropy.apply(hidden, weight, targets, 16, softmax_gradient_, {})
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


@pytest.mark.parametrize(
    "switches",
    [{}, {"tied": False}, {"position": "rotary", "norm": "rms", "mlp": "swiglu"}],
    ids=["classic", "untied", "modern"],
)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_a_models_gradients_are_those_of_the_plain_loss(switches, compile):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, **SHAPE, **switches))
    tokens = torch.randint(50, (3, 13))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    plain = next_token_loss(model, inputs, targets)
    expected = torch.autograd.grad(plain, list(model.parameters()))
    loss = NextTokenLoss(compile)(model, inputs, targets)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(
        torch.autograd.grad(loss, list(model.parameters())), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_recomputed_blocks_give_the_same_gradients(compile):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, **SHAPE | {"dropout": 0.0}))
    tokens = torch.randint(50, (3, 13))

    def found():
        loss = NextTokenLoss(compile)(model, tokens[:, :-1], tokens[:, 1:])
        return torch.autograd.grad(loss, list(model.parameters()))

    kept = found()
    model.recompute = True
    torch.testing.assert_close(found(), kept, rtol=1e-4, atol=1e-6)


def test_recomputing_draws_the_same_dropout_and_keeps_less():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, **SHAPE | {"dropout": 0.5}))
    tokens = torch.randint(50, (3, 13))
    kept = []

    def found():
        torch.manual_seed(1)
        size = 0

        def count(tensor):
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = NextTokenLoss()(model, tokens[:, :-1], tokens[:, 1:])
        kept.append(size)
        return torch.autograd.grad(loss, list(model.parameters()))

    before = found()
    model.recompute = True
    torch.testing.assert_close(found(), before)
    assert kept[1] < kept[0] / 3


def test_what_is_held_at_once_does_not_grow_with_the_batch():
    held = []

    def kernel(logits, targets):
        held.append(logits.shape)
        return softmax_gradient_(logits, targets)

    hidden, weight, targets = make_input(40)
    LinearCrossEntropy.apply(hidden, weight, targets, 16, kernel, {})
    assert held == [(16, 50), (16, 50), (8, 50)]
    assert rows_at_once(50257, "cpu", compiled=True) == 512
    assert rows_at_once(50257, "cpu", compiled=False) == 128
    assert rows_at_once(10**10, "cuda", compiled=True) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("number_format", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compile", [False, True])
def test_on_a_gpu_too(number_format, compile):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | {"n_embd": 64})).cuda()
    tokens = torch.randint(50257, (32, 13), device="cuda")
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    exact = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(exact, list(model.parameters()))
    with torch.autocast("cuda", number_format):
        loss = NextTokenLoss(compile)(model, inputs, targets)
    found = torch.autograd.grad(loss, list(model.parameters()))
    for mine, truth in zip(found, expected, strict=True):
        assert (mine - truth).norm() < 0.05 * truth.norm()


@pytest.mark.parametrize("tied", [True, False])
def test_many_steps_with_one_loss_are_those_of_a_plain_loop(tied):
    """What is kept from call to call never carries a value over; whatever comes between."""
    config = GPTConfig(vocab_size=50, tied=tied, **SHAPE)
    plain, ours = GPT(config), GPT(config)
    ours.load_state_dict(plain.state_dict())
    one, other = (torch.optim.SGD(model.parameters(), lr=0.5) for model in (plain, ours))
    loss_of, tokens = NextTokenLoss(), torch.randint(50, (10, 3, 13))
    kernel = loss_of._kernel

    def fail(*_):
        raise RuntimeError("between two steps")

    for step in range(5):
        for part in (2 * step, 2 * step + 1):
            inputs, targets = tokens[part, :, :-1], tokens[part, :, 1:]
            expected = F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())
            torch.autograd.backward(expected / 2)
            found = loss_of(ours, inputs, targets)
            torch.testing.assert_close(found, expected)
            torch.autograd.backward(found / 2)
            with torch.no_grad():
                loss_of(ours, inputs[:2], targets[:2])
            loss_of._kernel = fail
            with pytest.raises(RuntimeError, match="between two steps"):
                loss_of(ours, inputs, targets)
            loss_of._kernel = kernel
        for mine, reference in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-6)
        for optimizer in (one, other):
            optimizer.step()
        loss_of.recycle(ours)
        for optimizer in (one, other):
            optimizer.zero_grad()
    assert loss_of._workspace
    loss_of.release()
    assert not loss_of._workspace
