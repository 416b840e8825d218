"""A device that computes something else than a CPU is found out before it trains."""

import pytest
import torch
from conftest import checkpoint, refuse

from slm import hardware
from slm.model import GPT, GPTConfig
from slm.training.callbacks import device_check
from slm.training.callbacks.device_check import check_device

CONFIGS = {
    "classic": GPTConfig(16, 90, 2, 2, 32, 0.5, bias=True),
    "modern": GPTConfig(16, 90, 2, 2, 32, 0.0, position="rotary", qk_norm=True, tied=False),
}
CPU = torch.device("cpu")
attention = torch.nn.functional.scaled_dot_product_attention


def unmasked(queries, keys, values, **_):
    return attention(queries, keys, values)


def scaled(queries, keys, values, **options):
    return 1.2 * attention(queries, keys, values, **options)


def without_gradients_of_queries_and_keys(queries, keys, values, **options):
    return attention(queries.detach(), keys.detach(), values, **options)


def not_a_number(queries, keys, values, **options):
    return attention(queries, keys, values, **options) * float("nan")


@pytest.fixture
def other_device(monkeypatch):
    """Makes the CPU count as another device, too, whose attention computes something else."""

    def make(wrong=attention):
        calls = [0]

        def kernel(*args, **options):
            calls[0] += 1
            return (attention if calls[0] <= 2 else wrong)(*args, **options)  # the CPU's come first

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
        monkeypatch.setattr(device_check, "_TRUSTED", "cpu:0")
        return torch.device("cpu")

    return make


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
def test_rounding_is_let_pass(name, precision):
    torch.manual_seed(0)
    model = GPT(CONFIGS[name]).to(torch.float64 if precision == "64-true" else torch.float32)
    loss, gradients = check_device(model, CPU, precision)
    assert loss < 1e-3
    assert gradients < (0.02 if "mixed" in precision else 1e-6)
    assert (gradients > 0) == ("mixed" in precision), "the same arithmetic, to the last bit"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "wrong",
    [
        unmasked,
        scaled,
        without_gradients_of_queries_and_keys,
        not_a_number,
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_wrong_kernels_are_not(other_device, name, wrong, precision):
    torch.manual_seed(0)
    model = GPT(CONFIGS[name])
    with pytest.raises(device_check.UserError, match="off the CPU's"):
        check_device(model, other_device(wrong), precision)


def test_it_changes_nothing():
    torch.manual_seed(0)
    model = GPT(CONFIGS["classic"]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    check_device(model, CPU, "32-true")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_on_such_a_device_stops_before_it_begins(slm, other_device):
    other_device(unmasked)
    words = ("fit", "--config", "tiny.yaml", "--trainer.precision", "32-true")
    refuse(slm(*words), "off the CPU's", "--check_device false")
    assert not checkpoint().exists()
    other_device(unmasked)
    assert slm(*words, "--check_device", "false").status == 0
    other_device()
    result = slm(*words)
    assert result.status == 0
    assert "agrees with the CPU: loss within 0.0e+00, gradients 0.0e+00" in result.err


def test_a_device_that_fails_is_explained(slm, other_device):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nmore of it")

    other_device(fails)
    result = slm("fit", "--config", "tiny.yaml")
    refuse(result, "fails on a small batch: CUDA error: no kernel image", "accelerator cpu")


def test_a_cpu_is_not_asked(slm):
    result = slm("fit", "--config", "tiny.yaml")
    assert result.status == 0
    assert "Device " not in result.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_gpu_computes_what_a_cpu_computes(precision):
    torch.manual_seed(0)
    for config in (*CONFIGS.values(), GPTConfig(256, 50257, 6, 6, 384, 0.1)):
        check_device(GPT(config), hardware.find_device("cuda"), precision)
