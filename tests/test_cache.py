"""Cached equals uncached: the first thing a cache has to show."""

import pytest
import torch

from slm.generation.cache import KVCache
from slm.model import GPT, GPTConfig

CLASSIC = GPTConfig(
    block_size=100, vocab_size=50, n_layer=2, n_head=2, n_embd=16, dropout=0.2, bias=True
)
MODERN = GPTConfig(
    block_size=100, vocab_size=50, n_layer=2, n_head=2, n_embd=16, position="rotary",
    norm="rms", qk_norm=True, mlp="swiglu",
)  # fmt: skip
# In bfloat16, SwiGLU's logits without a soft cap differ by up to 0.032 on the machines tried.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}


def make_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_cached_logits_equal_the_whole_passs_at_every_length(config, dtype):
    """Prompts of 5, 9 and 1 tokens, read in one pass, then continued side by side to the edge."""
    model = make_model(config, dtype)
    lengths, padded = [5, 9, 1], 16
    tokens_BT = torch.randint(50, (3, 100))
    cache = KVCache(config, 4, dtype)

    def whole(row, length):
        return model(tokens_BT[row : row + 1, :length])[0, -1].float()

    def same(logits_V, row, length):
        expected = whole(row, length)
        scale = expected.abs().max()
        torch.testing.assert_close(logits_V.float() / scale, expected / scale, rtol=0, atol=tol)

    tol = TOLERANCE[dtype]
    with torch.inference_mode():
        hidden_BTC = model.hidden(tokens_BT[:, :padded], cache.grow(0, 3, padded))
        cache.shorten(0, lengths)
        for row, length in enumerate(lengths):
            same(model.unembed(hidden_BTC[row, length - 1]), row, length)
        for step in range(100 - max(lengths)):
            ends = [length + step for length in lengths]
            new_B1 = torch.stack([tokens_BT[row, [end]] for row, end in enumerate(ends)])
            logits_BV = model.unembed(model.hidden(new_B1, cache.grow(0, 3, 1))[:, 0])
            for row, end in enumerate(ends):
                same(logits_BV[row], row, end + 1)
    assert cache.lengths == [96, 100, 92, 0]


def test_rows_of_one_length_and_of_several_are_stored_alike():
    """The ones by slices, the others by indices; seen by what the cache holds afterwards."""
    model = make_model(CLASSIC)
    tokens_BT = torch.randint(50, (2, 12))
    caches = [KVCache(CLASSIC, 2), KVCache(CLASSIC, 2)]
    with torch.inference_mode():
        for cache, length in zip(caches, (5, 4), strict=True):
            model.hidden(tokens_BT[:, :5], cache.grow(0, 2, 5))
            cache.shorten(1, [length])
            past = cache.grow(0, 2, 1)
            assert (past.slot is None) == (length == 4)
            model.hidden(tokens_BT[:, 5:6], past)
    for (ours, _), (reference, _) in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(ours[0, :, :6], reference[0, :, :6])
        assert reference[1, :, 4].abs().sum() > 0
        assert reference[1, :, 5].abs().sum() == 0, "the shorter row's new token went to slot 4"


def test_rows_that_leave_make_room_and_the_others_go_on():
    model = make_model(CLASSIC)
    tokens_BT = torch.randint(50, (3, 20))
    cache = KVCache(CLASSIC, 3)
    with torch.inference_mode():
        model.hidden(tokens_BT[:, :7], cache.grow(0, 3, 7))
        cache.keep([0, 2])
        assert cache.lengths == [7, 7, 0]
        fresh = model.hidden(tokens_BT[1:2, :9], cache.grow(2, 1, 9))
        hidden = model.hidden(tokens_BT[[0, 2], 7:8], cache.grow(0, 2, 1))
    torch.testing.assert_close(fresh, model.hidden(tokens_BT[1:2, :9]))
    torch.testing.assert_close(hidden[:, 0], model.hidden(tokens_BT[[0, 2], :8])[:, -1])


def test_more_than_the_context_holds_is_refused():
    cache = KVCache(CLASSIC, 1)
    cache.grow(0, 1, 90)
    with pytest.raises(ValueError, match="90 tokens and 11 more"):
        cache.grow(0, 1, 11)


def test_what_earlier_rows_left_behind_is_never_seen():
    model = make_model(CLASSIC)
    tokens_BT = torch.randint(50, (1, 8))
    cache = KVCache(CLASSIC, 1)
    for keys, values in cache.layers:
        keys.fill_(1e4)
        values.fill_(1e4)
    with torch.inference_mode():
        model.hidden(tokens_BT[:, :7], cache.grow(0, 1, 7))
        hidden = model.hidden(tokens_BT[:, 7:], cache.grow(0, 1, 1))
    torch.testing.assert_close(hidden[0, -1], model.hidden(tokens_BT)[0, -1])
