"""From logits to a token: options, filters, and the draw."""

import pytest
import torch

from slm.generation import SamplingOptions
from slm.generation.sampling import (
    Sampler,
    min_p,
    no_repeat_ngram,
    repetition_penalty,
    top_k,
    top_p,
)


def draws(logits, count, seed=0, **options):
    """Many independent draws from one distribution, as rows of one batch."""
    sampler = Sampler(SamplingOptions(**options))
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    rows = logits.expand(count, -1)
    return sampler.choose(rows, [[0]] * count, [0] * count, uniforms)


def test_greedy_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 2.0]])
    assert draws(logits, 5, temperature=0).tolist() == [1] * 5


@pytest.mark.parametrize("top_k", [None, 3, 50])
def test_temperature_draws_from_the_stated_distribution(top_k):
    logits = torch.tensor([1.0, 0.0, 2.0])
    found = draws(logits, 20_000, temperature=0.7, top_k=top_k).bincount() / 20_000
    torch.testing.assert_close(found, (logits / 0.7).softmax(0), atol=0.015, rtol=0)


def test_a_temperature_near_zero_is_greedy():
    for temperature in (1e-3, 1e-40, 1e-300):
        logits = torch.tensor([1.0, 300.0, 299.0])
        assert draws(logits, 9, temperature=temperature).tolist() == [1] * 9


def test_the_last_candidate_can_be_drawn_and_none_behind_it():
    logits = torch.tensor([[2.0, 1.0, -1e9]])
    sampler = Sampler(SamplingOptions(temperature=1.0))
    almost_one = 1 - 2**-53
    assert sampler.choose(logits, [[0]], [0], [almost_one]).item() == 1
    assert sampler.choose(logits, [[0]], [0], [0.0]).item() == 0


def test_top_k_never_leaves_the_k_likeliest():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    allowed = set(logits.topk(5).indices.tolist())
    assert set(draws(logits, 500, temperature=5.0, top_k=5).tolist()) == allowed


@pytest.mark.parametrize("shape", [(1, 50257), (3, 50257), (2, 4096), (2, 300), (1, 7)])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_top_k_finds_what_torchs_finds(shape, k):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(k))
    k = min(k, shape[1])
    values, ids = top_k(logits, k)
    expected = logits.topk(k)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize(("p", "kept"), [(0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.125]] * 2) * 3.0
    assert (top_p(p)(probabilities) > 0).sum(dim=1).tolist() == [kept] * 2


def test_min_p_is_relative_to_the_likeliest():
    probabilities = torch.tensor([[0.5, 0.26, 0.24, 0.0]])
    assert min_p(0.5)(probabilities).tolist() == [[0.5, pytest.approx(0.26), 0.0, 0.0]]


def test_top_p_counts_within_the_top_k():
    """As transformers and most others do: what is cut off has no probability left."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    seen = draws(logits, 300, temperature=1.0, top_k=2, top_p=0.6)
    assert set(seen.tolist()) == {0}, "0.5 of 0.8 is more than 0.6"


def test_top_p_works_without_top_k():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    seen = draws(logits, 300, temperature=1.0, top_k=None, top_p=0.75)
    assert set(seen.tolist()) == {1, 2}


def test_the_repetition_penalty_lowers_what_has_occurred_in_each_row_alone():
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    found = repetition_penalty(2.0)(logits, [[0, 1, 1], [2]])
    assert found.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]
    assert logits.tolist() == [[2.0, -2.0, 1.0]] * 2, "the given logits are left alone"


def test_end_of_text_is_not_penalised_for_standing_in_front_of_every_story():
    options = SamplingOptions(temperature=0, repetition_penalty=2.0)
    sampler = Sampler(options, stop_id=1)
    logits = torch.tensor([[1.5, 2.0, 1.8]])
    assert sampler.choose(logits, [[1, 2]], [1], [0.0]).item() == 1


def test_no_ngram_twice():
    logits = torch.zeros(2, 6)
    found = no_repeat_ngram(3)(logits, [[1, 2, 3, 4, 1, 2, 5, 1, 2], [1, 2]])
    assert found[0].isinf().nonzero()[:, 0].tolist() == [3, 5]
    assert not found[1].isinf().any()


def test_end_of_text_waits_for_the_minimum():
    sampler = Sampler(SamplingOptions(temperature=0, min_new_tokens=3), stop_id=1)
    logits = torch.tensor([[0.0, 9.0, 1.0]] * 2)
    assert sampler.choose(logits, [[0], [0]], [2, 3], [0.0, 0.0]).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"no_repeat_ngram": 1}, "no_repeat_ngram is 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            {"min_new_tokens": 9, "max_new_tokens": 8},
            "min_new_tokens is 9; it must be from 0 to max_new_tokens, 8",
        ),
        ({"stop": ("",)}, "texts that a story may contain"),
        ({"stop": "The end"}, "stop is The end; it must be a tuple"),
        ({"seed": -1}, "seed is -1"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"seed": 2**63 - 1, "num_samples": 2}, "with 2 samples"),
        ({"past_context": "slide"}, "past_context is slide"),
        ({"temperature": 0, "top_p": 0.9}, "top_p is 0.9; it must be null with temperature 0"),
        ({"temperature": 0, "min_p": 0.1}, "min_p is 0.1; it must be null with temperature 0"),
        ({"temperature": 0, "num_samples": 2}, "num_samples is 2; it must be 1 with temperature 0"),
    ],
)
def test_options_out_of_range_or_in_contradiction_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        SamplingOptions(**options)
    assert "; " in str(caught.value), "what was found; what would be right"
