"""The definitions: attention, loss and generation in their plain form.

Read these first. Training and generation use faster forms of them, in `gpt.py`,
`training/loss.py` and `generation/`; the tests require the same results.

Shape suffixes: B batch, T positions, C width, H heads, D head size, V vocabulary, K candidates.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Causal attention weights: softmax(Q Kᵀ / √D), with later positions masked out.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.2. Queries and keys are (B, H, T, D).

    Returns:
        (B, H, T, T): row t holds the weight of each position for the output at t. Rows sum to one.
    """
    T, D = queries.shape[-2:]
    scores_BHTT = queries @ keys.transpose(-2, -1) / math.sqrt(D)
    future_TT = torch.ones(T, T, dtype=torch.bool, device=queries.device).triu(1)
    return scores_BHTT.masked_fill(future_TT, float("-inf")).softmax(dim=-1)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention: the average of the values, (B, H, T, D), under these weights."""
    return attention_weights(queries, keys) @ values


def next_token_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token: log(sum of exp(logits)) - logit of the target.

    Inputs are token ids (B, T), targets the ids that follow them; the model's logits (B, T, V).
    """
    logits_BTV: Tensor = model(inputs)
    target_logits_BT = logits_BTV.gather(2, targets.unsqueeze(2)).squeeze(2)
    return torch.mean(logits_BTV.logsumexp(dim=2) - target_logits_BT)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Sequence[int],
    uniforms: Iterator[float],
    *,
    temperature: float,
    top_k: int,
    block_size: int,
) -> Iterator[int]:
    """Generates tokens without a cache, one for each random number.

    The model reads the whole sequence; the logits at the last position, divided by the temperature,
    give the next token's probabilities. Of the k likeliest tokens one is drawn: the first at which
    the sum of the probabilities exceeds the random number.

    Args:
        model: In evaluation mode, from token ids (B, T) to logits (B, T, V).
        prompt: Token ids to continue, at least one.
        uniforms: Random numbers from 0 to 1.
        temperature: Above 0. Below 1 it favours likely tokens, above 1 unlikely ones.
        top_k: k, from 1 to V.
        block_size: The model's context length; earlier tokens are forgotten.
    """
    tokens = list(prompt)
    for uniform in uniforms:
        logits_V = model(torch.tensor([tokens[-block_size:]]))[0, -1]
        logits_K, ids_K = logits_V.double().topk(top_k)
        cumulative_K = (logits_K / temperature).softmax(dim=0).cumsum(dim=0)
        index = int((cumulative_K <= uniform).sum())
        tokens.append(int(ids_K[min(index, top_k - 1)]))
        yield tokens[-1]
