"""AdamW's groups and the learning-rate curve."""

import itertools
import math

import pytest
import torch

from slm.model import GPT, GPTConfig
from slm.training.optimization import OptimizerOptions, learning_rate_curve, make_optimizer


def test_matrices_decay_and_vectors_do_not():
    model = GPT(GPTConfig(8, 30, 1, 2, 16, 0.0, bias=True))
    adamw = make_optimizer(model, OptimizerOptions(weight_decay=0.3), fused=False)
    decay = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters())), "each parameter once"
    for name, parameter in model.named_parameters():
        vector = name.endswith("bias") or "norm" in name
        assert decay[id(parameter)] == (0.0 if vector else 0.3), name


def test_the_curve_rises_to_one_falls_to_the_floor_and_stays():
    curve = learning_rate_curve(OptimizerOptions(warmup_steps=10, min_lr_ratio=0.1), 100)
    rates = [curve(step) for step in range(150)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:101]))
    assert rates[55] == pytest.approx(0.1 + 0.9 / 2)
    assert rates[100:] == [0.1] * 50
    assert rates[32] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 22 / 90)) / 2)


def test_the_trapezoid_stays_up_and_falls_in_a_straight_line():
    options = OptimizerOptions(
        warmup_steps=10, min_lr_ratio=0.1, schedule="trapezoid", cooldown_share=0.4
    )
    curve = learning_rate_curve(options, 100)
    rates = [curve(step) for step in range(120)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10:61] == [1.0] * 51
    assert rates[60:101] == pytest.approx([1.0 - 0.9 * k / 40 for k in range(41)])
    assert rates[100:] == [0.1] * 20


@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (5, 5), (0, 1)])
def test_degenerate_curves_are_finite(warmup, total):
    curve = learning_rate_curve(OptimizerOptions(warmup_steps=warmup, min_lr_ratio=0.0), total)
    assert all(0 <= curve(step) <= 1 for step in range(10))


def test_fused_and_plain_kernels_agree():
    def train(fused):
        torch.manual_seed(0)
        model = GPT(GPTConfig(8, 30, 1, 2, 16, 0.0))
        adamw = make_optimizer(model, OptimizerOptions(lr=0.01), fused=fused)
        for step in range(5):
            adamw.zero_grad()
            model(torch.full((1, 8), step)).logsumexp(-1).mean().backward()
            adamw.step()
        return list(model.parameters())

    torch.testing.assert_close(train(True), train(False))


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("min_lr_ratio", 1.5), ("warmup_steps", -1), ("decay_steps", 0),
     ("weight_decay", -0.1), ("beta1", 1.0), ("beta2", -0.5), ("name", "sgd"), ("muon_lr", 0.0),
     ("muon_momentum", 1.0), ("schedule", "step"), ("cooldown_share", 0.0)],
)  # fmt: skip
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match="it must be"):
        OptimizerOptions(**{field: value})
