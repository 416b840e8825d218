"""The count of operations against torch's own counter."""

import pytest
import torch
from conftest import plain_attention
from torch.utils.flop_counter import FlopCounterMode

from slm.model import GPT, GPTConfig
from slm.model.flops import training_flops_per_token


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_counted_is_what_torch_counts(mlp, tied):
    config = GPTConfig(24, 90, 3, 2, 48, 0.0, mlp=mlp, tied=tied)
    model = GPT(config)
    # torch's counter knows the products of plain attention.
    with plain_attention(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 24, dtype=torch.int64)).sum().backward()
    assert counter.get_total_flops() == 48 * training_flops_per_token(config)
