"""From a prompt to new tokens, one at a time.

Shape suffixes: B batch (here 1), T positions.
"""

from collections.abc import Iterator, Sequence

import torch

from slm.model.gpt import GPT
from slm.model.sampling import SamplingOptions, sample


@torch.inference_mode()
def next_token_logits(model: GPT, tokens: Sequence[int]) -> torch.Tensor:
    """Logits (V,) of the token after `tokens`, computed from the last `block_size` of them.

    Learned positions cannot slide: beyond `block_size` the window is cut to its end and the
    remaining tokens are numbered anew, so the model forgets the beginning of a long story.
    """
    window = list(tokens[-model.config.block_size :])
    tokens_BT = torch.tensor([window], device=model.token_embedding.weight.device)
    return model.unembed(model.hidden(tokens_BT)[0, -1])


def stream(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, stop_id: int | None = None
) -> Iterator[int]:
    """Yields new token ids as they are drawn.

    The model is put into evaluation mode, and left in it. No other random state is touched.

    Args:
        model: The network.
        prompt: Token ids to go on from, at least one.
        options: Temperature, top-k, length limit and seed.
        stop_id: Generation ends before this id (end-of-text) would be yielded.

    Raises:
        ValueError: The prompt is empty, or holds an id outside the vocabulary.
    """
    if not prompt:
        raise ValueError("the prompt is empty; start from the end-of-text id to begin a new story")
    if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
        raise ValueError(f"the prompt holds ids outside 0 to {model.config.vocab_size - 1}")
    model.eval()
    generator = torch.Generator().manual_seed(options.seed)
    tokens = list(prompt)
    for _ in range(options.max_new_tokens):
        token = sample(next_token_logits(model, tokens), options, generator)
        if token == stop_id:
            return
        tokens.append(token)
        yield token


def generate(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, stop_id: int | None = None
) -> list[int]:
    """The new token ids of `stream`, all at once. Same arguments, same errors."""
    return list(stream(model, prompt, options, stop_id))
