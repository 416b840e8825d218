"""The likelihood of passages, and how often a model prefers the right one.

Shape suffixes: B passages, T positions, C width, V vocabulary, N judged positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slm.data.tokenizer import Tokenizer
from slm.evaluation.pairs import Pair, Passage
from slm.hardware import widest_float
from slm.model import GPT

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Accuracy:
    """How many pairs a model passes."""

    pairs: int
    passed: float
    """A tie counts one half."""
    left_out: int = 0
    """Pairs that do not fit into the model's context."""

    @property
    def share(self) -> float:
        """The share passed, of one pair at least; chance is one half."""
        return self.passed / self.pairs

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's score interval (1927): where the true share lies, at 95 % with z = 1.96."""
        n, p = self.pairs, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def score_pairs(model: GPT, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> Accuracy:
    """Judges pairs by the mean log-probability of a passage's tokens.

    If a pair does not fit into the context, the same number of tokens is cut from the beginning of
    both sides; if its judged part alone does not fit, it is left out.
    """
    ready = [both for pair in pairs if (both := _fit(model, tokenizer, pair))]
    means = mean_log_probabilities(model, [side for both in ready for side in both])
    differences = [right - wrong for right, wrong in zip(means[::2], means[1::2], strict=True)]
    passed = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences)
    return Accuracy(len(ready), passed, len(pairs) - len(ready))


_Side = tuple[list[int], int]
"""Token ids, and the number of those at the end that are judged."""


def _fit(model: GPT, tokenizer: Tokenizer, pair: Pair) -> tuple[_Side, _Side] | None:
    def encode(passage: Passage) -> tuple[list[int], list[int]]:
        context = [tokenizer.end_of_text, *tokenizer.encode(passage.context)]
        return context, tokenizer.encode(passage.judged)

    right, wrong = encode(pair.right), encode(pair.wrong)
    # The last token is predicted, never read.
    room = model.config.block_size + 1 - max(len(right[1]), len(wrong[1]))
    if room < 1 or not right[1] or not wrong[1]:
        return None
    sides = [(context[-room:] + judged, len(judged)) for context, judged in (right, wrong)]
    return sides[0], sides[1]


@torch.inference_mode()
def mean_log_probabilities(model: GPT, sides: Sequence[_Side]) -> list[float]:
    """Mean log-probability, in nats per token, of the judged end of each sequence.

    Sequences have at most `block_size` + 1 tokens; the network is in evaluation mode.
    """
    device = model.token_embedding.weight.device
    order = sorted(range(len(sides)), key=lambda index: len(sides[index][0]))
    means = [0.0] * len(sides)
    while order:
        longest = len(sides[order[-1]][0])
        count = max(1, _TOKENS_AT_ONCE // longest)
        some, order = order[-count:], order[:-count]
        tokens_BT = torch.zeros(len(some), longest, dtype=torch.int64)
        judged_BT = torch.zeros(len(some), longest - 1, dtype=torch.bool)
        for row, index in enumerate(some):
            ids, judged = sides[index]
            tokens_BT[row, : len(ids)] = torch.tensor(ids)
            judged_BT[row, len(ids) - 1 - judged : len(ids) - 1] = True
        tokens_BT, judged_BT = tokens_BT.to(device), judged_BT.to(device)
        hidden_BTC = model.hidden(tokens_BT[:, :-1])
        targets_N = tokens_BT[:, 1:][judged_BT]
        log_probs_N = _log_probs(model, hidden_BTC[judged_BT], targets_N)
        exact = widest_float(device.type)
        sums_BT = torch.zeros(judged_BT.shape, dtype=exact, device=device)
        sums_BT[judged_BT] = log_probs_N.to(exact)
        found = (sums_BT.sum(1) / judged_BT.sum(1)).tolist()
        for index, mean in zip(some, found, strict=True):
            means[index] = mean
    return means


def _log_probs(model: GPT, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of targets (N,) given hidden states (N, C); few logits at a time."""
    parts = [
        model.unembed(some_nC).float().log_softmax(-1).gather(1, some_n[:, None])[:, 0]
        for some_nC, some_n in zip(torch.split(hidden, 512), torch.split(targets, 512), strict=True)
    ]
    return torch.cat(parts)
