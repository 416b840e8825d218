"""Exact loss, perplexity and bits per byte of a text: sums and counts, divided once at the end.

Shape suffixes: B batch, T positions, V vocabulary, and BT if both are flattened into one.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from slm.data.batches import IGNORED


class LanguageModelMetrics(Metric):
    """Loss, perplexity and bits per byte over all predicted tokens.

    With N the summed -ln p of the predicted tokens, n their number and b the number of UTF-8
    bytes they stand for (end-of-text: none):

        loss = N / n   (nats per token)
        perplexity = exp(loss)
        bits_per_byte = N / (b ln 2)

    Loss and perplexity depend on the vocabulary; bits per byte compares across tokenizers.

    Args:
        byte_lengths: UTF-8 bytes of each token id, (V,).
        dtype: Format of the sum: the widest that the device has.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor

    def __init__(
        self, byte_lengths: npt.NDArray[np.int64], dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.register_buffer("byte_lengths", torch.from_numpy(byte_lengths), persistent=False)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds logits (B, T, V) and targets (B, T); targets that are `IGNORED` do not count."""
        losses_BT = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        counted_BT = targets != IGNORED
        assert isinstance(self.byte_lengths, Tensor)
        self.nats += losses_BT.to(self.nats.dtype).sum()
        self.tokens += counted_BT.sum()
        self.bytes += self.byte_lengths[targets[counted_BT]].sum()

    def compute(self) -> dict[str, Tensor]:
        """`loss`, `perplexity` and `bits_per_byte` of everything added so far."""
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": self.nats / (self.bytes * math.log(2)),
        }
