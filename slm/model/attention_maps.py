"""Attention weights of a text, read while the network runs."""

from typing import Any

import torch
from torch import Tensor

from slm.model.gpt import GPT, CausalSelfAttention
from slm.model.reference import attention_weights


@torch.no_grad()
def attention_maps(model: GPT, tokens: Tensor) -> Tensor:
    """The attention weights of all layers and heads, (layers, heads, T, T).

    They are `reference.attention_weights`, from queries and keys that are computed again from the
    input of each attention layer. Tokens are ids (T,), int64, on the model's device, with T at most
    `block_size`.
    """
    maps: list[Tensor] = []

    def look(attention: Any, arguments: tuple[Any, ...]) -> None:
        queries, keys, _ = attention.heads(*arguments[:2])
        maps.append(attention_weights(queries, keys)[0])

    layers = [layer for layer in model.modules() if isinstance(layer, CausalSelfAttention)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        model.hidden(tokens.unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)
