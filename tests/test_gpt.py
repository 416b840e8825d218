"""The network as mathematics."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import plain_attention
from torch.nn import functional as F

from slm.model import GPTConfig
from slm.model.gpt import GPT
from slm.model.reference import attention_weights

CONFIG = GPTConfig(block_size=12, vocab_size=50, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


def make_model(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return GPT(config).eval()


def test_changing_a_token_changes_nothing_before_it():
    model = make_model()
    tokens = torch.randint(50, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_equals_plain_attention_in_values_and_gradients(bias):
    config = GPTConfig(12, 50, 2, 2, 16, 0.0, bias)
    results = []
    for how in (nullcontext, plain_attention):
        model = make_model(config)
        torch.manual_seed(1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with how():
            logits = model(torch.arange(24).view(2, 12))
        logits.square().mean().backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_attention_weights_are_a_causal_distribution():
    weights = attention_weights(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert torch.all(weights.triu(1) == 0)


def test_parameter_counts_of_the_classic_configuration():
    """The three conventions under which one model is called 10.6 M, 30 M and 49 M."""
    counts = GPT(GPTConfig()).parameter_counts()
    block = 12 * 384**2 + 2 * 384
    assert counts.without_embeddings == 6 * block + 384 == 10_621_824
    assert counts.tied == counts.without_embeddings + (50257 + 128) * 384 == 29_969_664
    assert counts.untied == counts.tied + 50257 * 384 == 49_268_352


def test_biases_add_what_gpt2_has():
    with_bias = GPT(GPTConfig(12, 50, 2, 2, 16, 0.0, True)).parameter_counts().tied
    without = GPT(CONFIG).parameter_counts().tied
    linear = 3 * 16 + 16 + 4 * 16 + 16
    assert with_bias - without == 2 * (linear + 2 * 16) + 16


def test_the_head_is_tied_to_the_embedding():
    model = make_model()
    assert "head.weight" not in model.state_dict()
    hidden = model.hidden(torch.arange(5)[None])
    torch.testing.assert_close(model.unembed(hidden), hidden @ model.token_embedding.weight.T)


def test_initialisation_is_gpt2s():
    model = make_model(GPTConfig(64, 1000, 8, 4, 128, 0.0))
    block = model.blocks[3]
    for weight, std in (
        (model.token_embedding.weight, 0.02),
        (model.position_embedding.weight, 0.02),
        (block.attention.qkv.weight, 0.02),
        (block.mlp.up.weight, 0.02),
        (block.attention.proj.weight, 0.02 / math.sqrt(16)),
        (block.mlp.down.weight, 0.02 / math.sqrt(16)),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(weight.mean().item()) < std / 10


def test_an_untrained_model_knows_nothing():
    """Its loss is that of a uniform guess, ln V."""
    model = make_model(GPTConfig(32, 1000, 2, 2, 32, 0.0))
    tokens = torch.randint(1000, (8, 33))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.05)


def test_dropout_acts_in_training_only():
    model = make_model(GPTConfig(12, 50, 2, 2, 16, 0.5))
    tokens = torch.arange(12)[None]
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match=r"13 tokens .* context of 12"):
        make_model()(torch.zeros(1, 13, dtype=torch.int64))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_embd", 100, "n_embd 100 is not divisible by n_head 6"),
        ("n_layer", 0, "n_layer is 0"),
        ("dropout", 1.0, "dropout is 1.0"),
        ("block_size", -1, "block_size is -1"),
    ],
)
def test_a_config_out_of_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{field: value})
