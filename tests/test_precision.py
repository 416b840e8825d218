"""What `auto` takes on which device."""

import pytest
import torch

from slm.training.precision import resolve_precision


def machine(monkeypatch, cuda=False, native=False, mps=False, cpu_bf16=False):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": cpu_bf16}, raising=False
    )


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [
        ({"cuda": True, "native": True}, "auto", "bf16-mixed"),
        ({"cuda": True, "native": False}, "auto", "16-mixed"),
        ({"cuda": True, "native": True}, "cpu", "32-true"),
        ({"mps": True}, "auto", "32-true"),
        ({"cpu_bf16": True}, "auto", "bf16-mixed"),
        ({}, "auto", "32-true"),
    ],
)
def test_auto_follows_the_device(monkeypatch, devices, accelerator, expected):
    machine(monkeypatch, **devices)
    assert resolve_precision("auto", accelerator) == expected


def test_what_was_asked_for_is_given(monkeypatch):
    machine(monkeypatch)
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"


def test_a_torch_that_cannot_tell_means_float32(monkeypatch):
    machine(monkeypatch)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", "cpu") == "32-true"
