"""Loss, perplexity and bits per byte of a text under one or several networks."""

from collections.abc import Mapping

import torch

from slm.data.batches import ConsecutiveWindows
from slm.data.tokenizer import Tokenizer
from slm.model import GPT
from slm.training.metrics import LanguageModelMetrics


@torch.inference_mode()
def measure_loss(
    models: Mapping[str, GPT], windows: ConsecutiveWindows, tokenizer: Tokenizer, tokens: int | None
) -> dict[str, dict[str, float]]:
    """Reads about so many tokens from the beginning of a text; None reads all of it.

    Returns:
        For each model `loss`, `perplexity`, `bits_per_byte` and the number of predicted `tokens`.
    """
    metrics = {name: LanguageModelMetrics(tokenizer.byte_lengths()) for name in models}
    for index in range(len(windows)):
        inputs_BT, targets_BT = windows[index]
        for name, model in models.items():
            device = model.token_embedding.weight.device
            metrics[name].update(model(inputs_BT.to(device)).cpu(), targets_BT)
        if tokens is not None and all(int(each.tokens) >= tokens for each in metrics.values()):
            break
    return {
        name: {key: float(value) for key, value in each.compute().items()}
        | {"tokens": int(each.tokens)}
        for name, each in metrics.items()
    }
