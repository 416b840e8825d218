"""Sampling and generation."""

import pytest
import torch

from slm.model import GPT, GPTConfig, SamplingOptions, generate, stream
from slm.model.generation import next_token_logits
from slm.model.sampling import sample


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=30, n_layer=2, n_head=2, n_embd=16, dropout=0.2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # opinions, instead of a uniform guess
    return model


def test_greedy_takes_the_likeliest(model):
    options = SamplingOptions(temperature=0, max_new_tokens=5)
    tokens = [1, 2]
    for token in generate(model, tokens, options):
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)
    assert len(tokens) == 7


def test_same_seed_same_story_and_another_seed_another(model):
    def tell(seed):
        return generate(model, [3], SamplingOptions(temperature=1.0, max_new_tokens=30, seed=seed))

    assert tell(1) == tell(1)
    assert tell(1) != tell(2)


def test_streaming_gives_what_plain_generation_gives(model):
    options = SamplingOptions(max_new_tokens=20, seed=5)
    told = stream(model, [4], options)
    assert [next(told), *told] == generate(model, [4], options)


def test_generation_leaves_the_global_random_state_alone(model):
    before = torch.random.get_rng_state()
    generate(model, [1], SamplingOptions(max_new_tokens=5))
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_ends_at_the_stop_token_without_yielding_it(model):
    options = SamplingOptions(temperature=1.0, top_k=None, max_new_tokens=500, seed=0)
    free = generate(model, [1], options)
    stop = free[10]
    stopped = generate(model, [1], options, stop_id=stop)
    assert stopped == free[: free.index(stop)]


def test_beyond_the_context_it_looks_at_the_last_block_size_tokens(model):
    tokens = list(range(20))
    torch.testing.assert_close(
        next_token_logits(model.eval(), tokens), model(torch.tensor([tokens[-8:]]))[0, -1]
    )
    assert len(generate(model, tokens, SamplingOptions(max_new_tokens=20))) == 20


def test_top_k_never_leaves_the_k_likeliest():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    allowed = set(logits.topk(5).indices.tolist())
    generator = torch.Generator().manual_seed(0)
    options = SamplingOptions(temperature=5.0, top_k=5)
    assert {sample(logits, options, generator) for _ in range(300)} == allowed


def test_temperature_draws_from_the_stated_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0])
    expected = (logits / 0.7).softmax(0)
    generator = torch.Generator().manual_seed(0)
    options = SamplingOptions(temperature=0.7, top_k=None)
    draws = torch.tensor([sample(logits, options, generator) for _ in range(20_000)])
    torch.testing.assert_close(draws.bincount() / 20_000.0, expected, atol=0.015, rtol=0)


def test_a_temperature_near_zero_is_greedy():
    logits = torch.tensor([1.0, 300.0, 299.0])
    options = SamplingOptions(temperature=1e-40, top_k=None)
    assert sample(logits, options, torch.Generator()) == 1


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"max_new_tokens": 0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingOptions(**options)


@pytest.mark.parametrize(("prompt", "message"), [([], "empty"), ([30], "outside 0 to 29")])
def test_a_prompt_that_cannot_be_is_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompt, SamplingOptions())
