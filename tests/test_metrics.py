"""Loss, perplexity and bits per byte, against their definitions."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from slm.data.batches import IGNORED
from slm.training.metrics import LanguageModelMetrics

BYTE_LENGTHS = np.array([1, 2, 3, 4, 0])


def test_values_are_their_definitions():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, 4], [3, 3, 2]])
    metrics = LanguageModelMetrics(BYTE_LENGTHS)
    metrics.update(logits, targets)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    values = metrics.compute()
    assert values["loss"].item() == pytest.approx(nats / 6, rel=1e-6)
    assert values["perplexity"].item() == pytest.approx(math.exp(nats / 6), rel=1e-6)
    assert values["bits_per_byte"].item() == pytest.approx(
        nats / math.log(2) / (1 + 2 + 0 + 4 + 4 + 3), rel=1e-6
    )


def test_batching_and_padding_do_not_change_a_digit_that_counts():
    logits, targets = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    whole, parts = LanguageModelMetrics(BYTE_LENGTHS), LanguageModelMetrics(BYTE_LENGTHS)
    whole.update(logits, targets)
    for row in range(4):
        padded = torch.cat([targets[row], torch.full((2,), IGNORED)])[None]
        noise = torch.cat([logits[row], 100 * torch.randn(2, 5)])[None]
        parts.update(noise, padded)
    for name, value in whole.compute().items():
        assert parts.compute()[name].item() == pytest.approx(value.item(), rel=1e-7), name


def test_a_uniform_guess_over_bytes_costs_eight_bits():
    metrics = LanguageModelMetrics(np.ones(256, dtype=np.int64))
    metrics.update(torch.zeros(1, 50, 256), torch.randint(256, (1, 50)))
    assert metrics.compute()["bits_per_byte"].item() == pytest.approx(8.0)


def test_sums_are_exact_over_many_batches():
    """A large sum still feels a small addend, as a float32 sum would not."""
    metrics = LanguageModelMetrics(BYTE_LENGTHS)
    metrics.nats += 3e9
    logits = torch.zeros(1, 1, 5)
    for _ in range(100):
        metrics.update(logits, torch.ones(1, 1, dtype=torch.int64))
    assert metrics.nats.item() - 3e9 == pytest.approx(100 * math.log(5), rel=1e-5)
    assert metrics.tokens.item() == 100
    assert metrics.bytes.item() == 200


def test_reset_starts_again():
    metrics = LanguageModelMetrics(BYTE_LENGTHS)
    metrics.update(torch.randn(1, 3, 5), torch.zeros(1, 3, dtype=torch.int64))
    metrics.reset()
    metrics.update(torch.zeros(1, 3, 5), torch.zeros(1, 3, dtype=torch.int64))
    assert metrics.compute()["loss"].item() == pytest.approx(math.log(5))
