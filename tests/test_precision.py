"""What `auto` takes on which device."""

import pytest
import torch

from slm import hardware
from slm.training.precision import can_fuse, is_native, resolve_precision


@pytest.mark.parametrize(
    ("native", "device", "expected"),
    [
        ({("cuda", torch.bfloat16)}, "cuda", "bf16-mixed"),
        ({("cuda", torch.float16)}, "cuda", "16-mixed"),
        ({("cpu", torch.bfloat16)}, "cpu", "bf16-mixed"),
        ({("cuda", torch.bfloat16)}, "cpu", "32-true"),
        ({("mps", torch.float16)}, "mps", "32-true"),
    ],
)
def test_auto_follows_the_device(monkeypatch, native, device, expected):
    monkeypatch.setattr(hardware, "multiplies_natively", lambda dtype, on: (on, dtype) in native)
    assert resolve_precision("auto", device) == expected
    assert resolve_precision("64-true", device) == "64-true", "what was asked for is given"


def test_what_is_not_native_is_known():
    assert not is_native("16-mixed", "cpu")
    assert is_native("16-mixed", "cuda")
    assert is_native("32-true", "mps")
    assert is_native("64-true", "cpu")
    assert not is_native("64-true", "mps")


def test_adamw_is_fused_where_it_can_be():
    assert can_fuse("bf16-mixed", "cuda")
    assert can_fuse("32-true", "cpu")
    assert not can_fuse("16-mixed", "cuda"), "a GradScaler's gradients"
    assert not can_fuse("32-true", "mps")
