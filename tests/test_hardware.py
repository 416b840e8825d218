"""What is said of a machine, on machines of several kinds."""

import os
import subprocess
import sys

import pytest
import torch

from slm import hardware
from slm.hardware import describe_device, find_device, multiplies_natively


@pytest.fixture
def machine(monkeypatch):
    """Makes torch report a machine."""

    def make(cuda=False, mps=False, onednn=True, **capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(hardware, "packs_bfloat16", lambda: onednn)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return make


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [
        ({"cuda": True}, "auto", "cuda:1"),
        ({"cuda": True}, "gpu", "cuda:1"),
        ({"cuda": True}, "cpu", "cpu"),
        ({"mps": True}, "auto", "mps"),
        ({"mps": True}, "gpu", "mps"),
        ({"cuda": True, "mps": True}, "mps", "mps"),
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
    ],
)
def test_the_best_device_of_that_name(machine, devices, accelerator, expected):
    machine(**devices)
    assert find_device(accelerator) == torch.device(expected)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(machine, accelerator):
    machine()
    with pytest.raises(ValueError, match=f"accelerator is {accelerator}, and torch finds no such"):
        find_device(accelerator)


@pytest.mark.parametrize("accelerator", ["tpu", "", "CPU", "cuda:0"])
def test_a_name_that_is_none_is_an_error_and_no_cpu(accelerator):
    with pytest.raises(ValueError, match=f"accelerator is {accelerator}; auto, cpu, gpu"):
        find_device(accelerator)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx512_f": True}, False),
        ({}, False),
        ({"avx512_bf16": True, "onednn": False}, False),  # ONEDNN_MAX_CPU_ISA=AVX2
    ],
)
def test_bfloat16_is_native_on_a_cpu_with_instructions_for_it(machine, capabilities, native):
    machine(**capabilities)
    assert multiplies_natively(torch.bfloat16, "cpu") is native
    assert ("no bfloat16" in describe_device("cpu")) is not native


def test_a_torch_that_cannot_list_capabilities_is_asked_otherwise(machine, monkeypatch):
    machine()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert multiplies_natively(torch.bfloat16, "cpu") is native


def test_other_formats_and_devices(machine, monkeypatch):
    machine(avx512_bf16=True)
    for native in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native
        )
        assert multiplies_natively(torch.bfloat16, "cuda") is native
    assert multiplies_natively(torch.float16, "cuda")
    assert not multiplies_natively(torch.float16, "cpu")
    assert not multiplies_natively(torch.bfloat16, "mps")
    assert all(multiplies_natively(torch.float32, device) for device in ("cpu", "cuda", "mps"))


@pytest.mark.skipif(
    not multiplies_natively(torch.bfloat16, "cpu"), reason="this CPU has no bfloat16 to limit"
)
def test_limits_set_in_the_environment_count():
    """By which a CPU that multiplies bfloat16 can be used as one that does not."""
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-m", "slm.hardware"],
        env=os.environ | limits, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "no bfloat16" in done.stdout
    assert f"torch {torch.__version__}" in done.stdout
