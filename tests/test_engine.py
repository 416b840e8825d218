"""Generation: one story, and many side by side."""

import os
from dataclasses import replace

import pytest
import torch
from conftest import WEIGHTS

from slm.generation import SamplingOptions, generate, stream
from slm.generation.engine import Engine, TokenSequence
from slm.generation.quantization import for_inference
from slm.model import GPT, GPTConfig, reference

CONFIG = GPTConfig(block_size=8, vocab_size=30, n_layer=2, n_head=2, n_embd=16, dropout=0.2)


def make_model(config=CONFIG, std=0.3):
    torch.manual_seed(0)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)  # opinions, instead of a uniform guess
    return model


@pytest.fixture
def model():
    return make_model()


def generate_all(model, prompts, options, stop_id=None, batch_size=4):
    """Stories with seeds 0, 1, … through a batch that others join as soon as one leaves."""
    batch = Engine(model, stop_id, batch_size)
    stories = [
        TokenSequence(prompt, replace(options, seed=seed)) for seed, prompt in enumerate(prompts)
    ]
    waiting = list(stories)
    while waiting or len(batch):
        while waiting and batch.free:
            batch.admit([waiting.pop(0)])
        batch.step()
    return stories


def test_greedy_takes_the_likeliest_of_the_whole_pass(model):
    tokens = [1, 2]
    for token in generate(model, tokens, SamplingOptions(temperature=0, max_new_tokens=6)):
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)
    assert len(tokens) == 8


def test_same_seed_same_story_and_another_seed_another(model):
    def sampled(seed):
        return generate(model, [3], SamplingOptions(temperature=1.0, max_new_tokens=30, seed=seed))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_a_longer_limit_does_not_change_the_beginning(model):
    short, long = (
        generate(model, [3], SamplingOptions(temperature=1.0, max_new_tokens=n)) for n in (5, 100)
    )
    assert long[:5] == short


def test_streaming_gives_what_plain_generation_gives(model):
    options = SamplingOptions(max_new_tokens=20, seed=5)
    generated = stream(model, [4], options)
    assert [next(generated), *generated] == generate(model, [4], options)


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


# ---- past the context -------------------------------------------------------------------


def test_past_the_context_it_goes_on_from_the_last_half(model):
    """8 positions: when they are full, the last 4 tokens are read again."""
    generated = generate(model, [1, 2], SamplingOptions(temperature=0, max_new_tokens=20))
    tokens, start = [1, 2], 0
    for token in generated:
        if len(tokens) - start > 8:
            start = len(tokens) - 4
        window = torch.tensor([tokens[start:]])
        assert token == int(model(window)[0, -1].argmax())
        tokens.append(token)
    assert start > 8, "it was rebuilt more than once"


def test_or_it_stops_there(model):
    options = SamplingOptions(max_new_tokens=20, past_context="stop")
    story = TokenSequence([1, 2], replace(options, seed=0))
    batch = Engine(model)
    batch.admit([story])
    while len(batch):
        batch.step()
    assert story.ended == "context"
    assert story.n_new == 7, "8 positions are read, and give one token more"
    rebuilt = SamplingOptions(max_new_tokens=20, seed=0)
    assert generate(model, [1, 2], rebuilt)[:7] == story.new_tokens


def test_of_a_prompt_beyond_the_context_its_end_is_read(model):
    prompt = list(range(20))
    options = SamplingOptions(temperature=0, max_new_tokens=1)
    assert generate(model, prompt, options) == generate(model, prompt[-8:], options)
    with pytest.raises(ValueError, match="a prompt of 20 tokens is longer than the context of 8"):
        generate(model, prompt, SamplingOptions(past_context="stop"))


# ---- batches ------------------------------------------------------------------------------

PROMPTS = [[1], [2, 3, 4], [5] * 7, [6, 7], [1], [8, 9, 10, 11, 12], [2, 3, 4], [13] * 12]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": None, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.3, "no_repeat_ngram": 3, "min_new_tokens": 4},
        {"past_context": "stop"},
    ],
    ids=str,
)
def test_a_story_does_not_depend_on_its_neighbours(weights, options):
    """Alone, in a batch of three that others join and leave, or of eight: the same tokens."""
    config = GPTConfig(block_size=40, vocab_size=40, n_layer=2, n_head=2, n_embd=64)
    model = for_inference(make_model(config), weights, "cpu")
    options = SamplingOptions(temperature=1.0, max_new_tokens=60, **options)
    alone = [generate_all(model, [prompt], options, 7)[0] for prompt in PROMPTS[:1]]
    alone += [
        generate_all(model, [[0]] * seed + [PROMPTS[seed]], options, 7, batch_size=1)[-1]
        for seed in range(1, len(PROMPTS))
    ]
    for batch_size in (3, 8):
        together = generate_all(model, PROMPTS, options, 7, batch_size)
        assert [s.tokens for s in together] == [s.tokens for s in alone]
        assert [s.ended for s in together] == [s.ended for s in alone]
    assert len({s.n_new for s in alone}) > 2, "they do not all end together"
    assert len({tuple(s.new_tokens) for s in alone}) > 6, "they are different stories"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_nor_in_the_shape_and_with_the_threads_that_people_use(weights):
    """384 wide, hidden 1,536, 256 positions; prompts of 1 to 150 tokens, in several blocks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        config = GPTConfig(block_size=256, vocab_size=2000, n_layer=2, n_head=6, n_embd=384)
        model = for_inference(make_model(config, std=0.1), weights, "cpu")
        options = SamplingOptions(temperature=1.0, top_k=None, max_new_tokens=24)
        lengths = [1, 20, 150, 40, 3]
        prompts = [[7 + n] * length for n, length in enumerate(lengths)]
        alone = []
        for seed, prompt in enumerate(prompts):
            story = TokenSequence(prompt, replace(options, seed=seed))
            batch = Engine(model)
            batch.admit([story])
            while len(batch):
                batch.step()
            alone.append(story.tokens)
        for batch_size in (2, 5):
            together = generate_all(model, prompts, options, None, batch_size)
            assert [story.tokens for story in together] == alone
    finally:
        torch.set_num_threads(threads)


def test_log_probabilities_are_the_models_own(model):
    """Without temperature, filters, or the neighbours; the end counts."""
    options = SamplingOptions(
        temperature=0.5, top_k=5, repetition_penalty=1.2, max_new_tokens=6, log_probs=3
    )
    for story in generate_all(model, [[1], [2], [3, 4]], options, stop_id=7):
        expected, likeliest = [], []
        ids = [*story.tokens, 7] if story.ended == "end of text" else story.tokens
        for end in range(len(story.tokens) - story.n_new, len(ids)):
            logits = model(torch.tensor([ids[:end]]))[0, -1].detach()
            expected.append(float(logits.log_softmax(0)[ids[end]]))
            top = logits.log_softmax(0).topk(3)
            likeliest.append((top.indices.tolist(), top.values.tolist()))
        assert story.log_probs == pytest.approx(expected, abs=1e-4)
        for found, (tokens, values) in zip(story.alternatives, likeliest, strict=True):
            assert [token for token, _ in found] == tokens
            assert [value for _, value in found] == pytest.approx(values, abs=1e-4)


def test_sequences_in_a_batch_have_their_own_options(model):
    """Ways of sampling, limits, log-probabilities and what to do at the end of the context."""
    options = [
        SamplingOptions(temperature=0, max_new_tokens=5),
        SamplingOptions(temperature=1.5, top_k=None, seed=3, log_probs=2),
        SamplingOptions(temperature=1.5, top_k=None, seed=4, past_context="stop"),
        SamplingOptions(top_p=0.7, max_new_tokens=40, repetition_penalty=1.2, log_probs=0),
    ]
    batch = Engine(model, 7, 4)
    together = [TokenSequence([1, 2], each) for each in options]
    batch.admit(together)
    while len(batch):
        batch.step()
    for sequence, each in zip(together, options, strict=True):
        assert sequence.new_tokens == generate(model, [1, 2], each, 7)
        wanted = 0 if each.log_probs is None else sequence.n_new + (sequence.ended == "end of text")
        assert len(sequence.log_probs) == len(sequence.alternatives) == wanted
        assert all(len(found) == each.log_probs for found in sequence.alternatives)
    assert len({sequence.ended for sequence in together}) > 1


def test_a_cancelled_sequence_frees_its_row_and_changes_nothing_else(model):
    options = SamplingOptions(temperature=1.0, max_new_tokens=20)
    stays, leaves = (TokenSequence([1], replace(options, seed=seed)) for seed in (1, 2))
    batch = Engine(model, None, 2)
    batch.admit([leaves, stays])
    for _ in range(4):
        batch.step()
    leaves.ended = "cancelled"
    assert batch.free == 1
    batch.admit([TokenSequence([3], options)])
    while len(batch):
        batch.step()
    assert leaves.n_new == 4
    assert stays.new_tokens == generate(model, [1], replace(options, seed=1))


def test_more_stories_than_rows_are_refused(model):
    batch = Engine(model, batch_size=2)
    with pytest.raises(ValueError, match="3 sequences for 2 free rows"):
        batch.admit([TokenSequence([1], SamplingOptions()) for _ in range(3)])


@pytest.mark.parametrize(("prompt", "message"), [([], "empty"), ([30], "outside 0 to 29")])
def test_a_prompt_that_cannot_be_is_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompt, SamplingOptions())


@pytest.mark.parametrize("seed", range(4))
def test_the_engine_draws_what_the_plain_definition_draws(model, seed):
    options = SamplingOptions(temperature=0.9, top_k=7, max_new_tokens=7, seed=seed)
    story = TokenSequence([], options)
    uniforms = iter([story.uniform() for _ in range(7)])
    plain = reference.generate(
        model.eval(), [3], uniforms, temperature=0.9, top_k=7, block_size=CONFIG.block_size
    )
    assert generate(model, [3], options) == list(plain)
