"""How far the network in an exported file is from ours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from slm.data.builtin.stories import stories
from slm.export.target import Logits, TrainedModel

_STORIES = 20


@dataclass(frozen=True)
class Difference:
    """Between two networks, on the same tokens."""

    logit: float
    """The largest absolute difference of a logit."""
    loss: float
    """How much higher the exported network's loss is, in nats per token."""

    def __str__(self) -> str:
        return f"largest logit difference {self.logit:.1e}, loss {self.loss:+.4f} nats per token"


def compare(trained: TrainedModel, exported: Mapping[str, Logits]) -> dict[str, Difference]:
    """Compares each exported network with ours, on built-in stories cropped to the context."""
    return {name: _compare(trained, logits) for name, logits in exported.items()}


@torch.inference_mode()
def _compare(trained: TrainedModel, exported: Logits) -> Difference:
    model, tokenizer = trained.model, trained.tokenizer
    largest, loss, tokens = 0.0, 0.0, 0
    for story in stories(_STORIES):
        ids = [tokenizer.end_of_text, *tokenizer.encode(story)][: model.config.block_size]
        ids_1T = torch.tensor([ids])
        original_TV, exported_TV = model(ids_1T)[0], exported(ids_1T)[0]
        difference_TV = (exported_TV - original_TV).abs().nan_to_num(math.inf)
        largest = max(largest, difference_TV.max().item())
        targets_T = ids_1T[0, 1:]
        for sign, logits_TV in ((-1, original_TV), (1, exported_TV)):
            loss += sign * F.cross_entropy(logits_TV[:-1], targets_T, reduction="sum").item()
        tokens += len(targets_T)
    return Difference(largest, loss / max(1, tokens))
