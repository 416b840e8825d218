"""What a machine promises and reaches."""

import pytest
import torch

from slm.bench.matrix_rate import MatrixRate, datasheet_rate


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", 65e12),
        ("a toaster", None),
    ],
)
def test_known_gpus_are_known_by_their_names(name, rate):
    assert datasheet_rate(name) == rate


def test_matrices_are_multiplied_at_a_plausible_rate():
    assert 1e9 < MatrixRate(torch.device("cpu"), torch.float32).measure(1) < 1e15
