"""From logits to the next token: filters, and the draw of `slm.model.reference.generate`.

Shape suffixes: B sequences, V vocabulary, K candidates, the likeliest first, S tokens so far.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slm.generation.options import SamplingOptions
from slm.hardware import widest_float

# ---- filters over the whole vocabulary, which know the story so far ----------------------

HistoryFilter = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]
"""From logits (B, V) and each row's tokens, prompt included, to logits (B, V)."""


def repetition_penalty(penalty: float, exempt: int | None = None) -> HistoryFilter:
    """Divides positive logits of tokens that have occurred by a penalty, multiplies negative ones.

    Keskar et al. 2019, "CTRL" (arXiv 1909.05858), section 4.1. A token `exempt` is left alone:
    end-of-text, after which every story begins.
    """

    def apply(logits_BV: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, tokens))
        # Short rows are filled up with a token of their own, which changes nothing.
        ids_BS = torch.tensor(
            [[*row, *[row[-1]] * (longest - len(row))] for row in tokens], device=logits_BV.device
        )
        seen_BS = logits_BV.gather(1, ids_BS)
        seen_BS = torch.where(seen_BS > 0, seen_BS / penalty, seen_BS * penalty)
        penalised_BV = logits_BV.scatter(1, ids_BS, seen_BS)
        if exempt is not None:
            penalised_BV[:, exempt] = logits_BV[:, exempt]
        return penalised_BV

    return apply


def no_repeat_ngram(n: int) -> HistoryFilter:
    """Forbids each token that would repeat a sequence of n tokens.

    Paulus et al. 2017 (arXiv 1705.04304), section 2.5, with trigrams.
    """

    def apply(logits_BV: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
        logits_BV = logits_BV.clone()
        for row, sequence in enumerate(tokens):
            sequence = list(sequence)
            ending = sequence[len(sequence) - n + 1 :]
            starts = range(len(sequence) - n + 1)
            banned = [sequence[i + n - 1] for i in starts if sequence[i : i + n - 1] == ending]
            if len(set(banned)) < logits_BV.size(1) - 1:  # there must be a next token
                logits_BV[row, banned] = float("-inf")
        return logits_BV

    return apply


# ---- filters over candidates, the likeliest first -----------------------------------------

CandidateFilter = Callable[[Tensor], Tensor]
"""From probabilities (B, K), falling along K, to the same with 0 for those removed."""


def top_p(p: float) -> CandidateFilter:
    """Keeps the fewest of the likeliest candidates whose probabilities together reach p.

    Holtzman et al. 2019 (arXiv 1904.09751), nucleus sampling.
    """

    def apply(probabilities_BK: Tensor) -> Tensor:
        total_B1 = probabilities_BK.sum(dim=-1, keepdim=True)
        before_BK = probabilities_BK.cumsum(dim=-1) - probabilities_BK
        return probabilities_BK.masked_fill(before_BK >= p * total_B1, 0.0)

    return apply


def min_p(p: float) -> CandidateFilter:
    """Keeps the candidates with at least p times the likeliest one's probability.

    Nguyen et al. 2024 (arXiv 2407.01082).
    """

    def apply(probabilities_BK: Tensor) -> Tensor:
        most_B1 = probabilities_BK.amax(dim=-1, keepdim=True)
        return probabilities_BK.masked_fill(probabilities_BK < p * most_B1, 0.0)

    return apply


class Sampler:
    """Draws the next token of each sequence.

    Args:
        options: What to apply; of the rest only `min_new_tokens` is read.
        stop_id: End-of-text, if there is such a token.
    """

    def __init__(self, options: SamplingOptions, stop_id: int | None = None) -> None:
        self._temperature = options.temperature
        self._top_k = options.top_k
        self._minimum = options.min_new_tokens if stop_id is not None else 0
        self._stop_id = stop_id
        self._history_filters: list[HistoryFilter] = []
        if options.repetition_penalty != 1.0:
            self._history_filters.append(repetition_penalty(options.repetition_penalty, stop_id))
        if options.no_repeat_ngram is not None:
            self._history_filters.append(no_repeat_ngram(options.no_repeat_ngram))
        self._sorted = options.top_p is not None
        self._few = options.top_p is None and options.min_p is None and (options.top_k or 65) <= 64
        self._filters: list[CandidateFilter] = []
        if options.top_p is not None:
            self._filters.append(top_p(options.top_p))
        if options.min_p is not None:
            self._filters.append(min_p(options.min_p))

    def choose(
        self,
        logits: Tensor,
        tokens: Sequence[Sequence[int]],
        new: Sequence[int],
        uniforms: Sequence[float],
    ) -> Tensor:
        """Draws one token per row.

        Each row's draw depends on its own arguments alone: the probabilities are added up from the
        likeliest token on until they exceed the row's uniform number.

        Args:
            logits: (B, V). End-of-text's may be changed in place.
            tokens: Each row's tokens so far, prompt included.
            new: How many of them are new.
            uniforms: A number from 0 to 1, below 1, for each row.

        Returns:
            Token ids, (B,), int64.
        """
        logits_BV = logits
        early = [row for row, count in enumerate(new) if count < self._minimum]
        if early:
            logits_BV[early, self._stop_id] = float("-inf")
        for history_filter in self._history_filters:
            logits_BV = history_filter(logits_BV.float(), tokens)
        if self._temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits_BK, ids_BK = self._candidates(logits_BV)
        if self._few and ids_BK is not None and logits.device.type == "cpu":
            return self._choose_among_few(logits_BK, ids_BK, uniforms)
        # Relative to the likeliest, so that no temperature is so low that the quotient overflows.
        exact = widest_float(logits.device.type)
        logits_BK = logits_BK.to(exact)
        most_B1 = logits_BK.amax(dim=-1, keepdim=True) if ids_BK is None else logits_BK[:, :1]
        probabilities_BK = ((logits_BK - most_B1) / self._temperature).exp()
        for candidate_filter in self._filters:
            probabilities_BK = candidate_filter(probabilities_BK)
        sums_BK = probabilities_BK.cumsum(dim=-1)
        uniforms_B1 = torch.tensor(uniforms, dtype=exact, device=logits.device)[:, None]
        index_B1 = torch.searchsorted(sums_BK, uniforms_B1 * sums_BK[:, -1:], right=True)
        index_B1 = index_B1.clamp_(max=sums_BK.size(-1) - 1)
        return (index_B1 if ids_BK is None else ids_BK.gather(1, index_B1))[:, 0]

    def _choose_among_few(
        self, logits_BK: Tensor, ids_BK: Tensor, uniforms: Sequence[float]
    ) -> Tensor:
        """The same by Python's numbers.

        While a network of 100 MB is read, the processor's cache forgets torch's code: each of the
        operations of `choose` then takes some 15 microseconds, all of this 50.
        """
        chosen = []
        for logits, ids, uniform in zip(logits_BK.tolist(), ids_BK.tolist(), uniforms, strict=True):
            sums = list(
                itertools.accumulate(
                    math.exp((logit - logits[0]) / self._temperature) for logit in logits
                )
            )
            index = bisect.bisect_right(sums, uniform * sums[-1])
            chosen.append(ids[min(index, len(ids) - 1)])
        return torch.tensor(chosen)

    def _candidates(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits to choose from, (B, K), and their ids; None if they are the whole vocabulary."""
        V = logits_BV.size(-1)
        if self._top_k is not None and self._top_k < V:
            return top_k(logits_BV, self._top_k)
        if self._sorted:
            return logits_BV.sort(dim=-1, descending=True)
        return logits_BV, None


_CHUNK = 64


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row and their ids, the largest first: (B, V) to (B, k) twice.

    In two steps, which is several times faster than one on a CPU: the k largest are in the k chunks
    of the vocabulary with the largest maxima.
    """
    B, V = logits.shape
    if 8 * k * _CHUNK > V:
        return logits.topk(k, dim=-1)
    whole = V - V % _CHUNK
    best_BK = logits[:, :whole].view(B, -1, _CHUNK).amax(dim=-1).topk(k, sorted=False).indices
    ids_NC, rest = _chunks(V, logits.device)
    ids = torch.cat((ids_NC[best_BK].flatten(1), rest.expand(B, -1)), dim=1)
    values_BK, index_BK = logits.gather(1, ids).topk(k, dim=-1)
    return values_BK, ids.gather(1, index_BK)


@functools.cache
def _chunks(V: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The ids of each whole chunk of a vocabulary, (N, _CHUNK), and those of the rest."""
    with torch.inference_mode(False):
        ids = torch.arange(V, device=device)
        whole = V - V % _CHUNK
        return ids[:whole].view(-1, _CHUNK), ids[whole:]
