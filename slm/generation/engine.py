"""The inference engine: continuous batching with a KV cache; equals `slm.model.reference.generate`.

A prompt is read in one pass (prefill); then each pass reads one token of every sequence (decode).

Shape suffixes: B batch (sequences), G sequences of one kind, T positions, C width, V vocabulary.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from slm.generation.cache import KVCache, round_up
from slm.generation.decode import PlainDecode
from slm.generation.options import SamplingOptions
from slm.generation.sampling import Sampler
from slm.model.gpt import GPT

_PADDING = 8
"""Prompts are padded to multiples of this, and those of one length are read together; the
arithmetic of a prompt then does not depend on the others."""

Ending = Literal["end of text", "max_new_tokens", "context", "stop", "cancelled"]


class TokenSequence:
    """A prompt, and the tokens generated after it.

    Args:
        prompt: Token ids to continue, at least one.
        options: How the next token is chosen, and when the sequence ends. Not read: `num_samples`
            and `stop`, which concern several stories or their text.

    Attributes:
        tokens: The prompt and the new tokens, without the end-of-text that ends them.
        options: As given.
        prompt_length: The number of tokens of the prompt.
        log_probs: If the options ask for them, the natural logarithms of the model's probabilities
            of the new tokens, and of the end-of-text if it was generated.
        alternatives: At each of these positions, the likeliest tokens with their own.
        ended: Why it ended, or None. The caller may set it to "stop" or "cancelled".
        sampler: Draws its tokens; set by the engine.
    """

    sampler: Sampler

    def __init__(self, prompt: Sequence[int], options: SamplingOptions) -> None:
        self.tokens = list(prompt)
        self.options = options
        self.log_probs: list[float] = []
        self.alternatives: list[list[tuple[int, float]]] = []
        self.ended: Ending | None = None
        self.prompt_length = len(self.tokens)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._uniforms: list[float] = []

    @property
    def new_tokens(self) -> list[int]:
        """The tokens after the prompt."""
        return self.new_since(0)

    def new_since(self, count: int) -> list[int]:
        """The tokens after the prompt and the first `count` new ones."""
        return self.tokens[self.prompt_length + count :]

    @property
    def n_new(self) -> int:
        """The number of new tokens."""
        return len(self.tokens) - self.prompt_length

    def uniform(self) -> float:
        """The random number for the next token, from 0 to 1; the n-th depends on the seed and n."""
        if not self._uniforms:
            block = torch.rand(64, generator=self._generator, dtype=torch.float64)
            self._uniforms = block.tolist()[::-1]
        return self._uniforms.pop()


class Engine:
    """Generates many sequences together, each as if it were alone.

    A sequence occupies a row of the cache from its admission to its end; others may be admitted at
    any time. Its tokens do not depend on the others, up to the rounding of the matrix products; on
    a CPU, with a network of `for_inference`, not even by that.

    Args:
        model: The network; it is put into evaluation mode, and left in it.
        stop_id: The token (end-of-text) that ends a sequence.
        batch_size: Sequences at once.
        decode: Another way of running the network's decode pass; by default operator by operator.
    """

    def __init__(
        self,
        model: GPT,
        stop_id: int | None = None,
        batch_size: int = 1,
        decode: PlainDecode | None = None,
    ) -> None:
        self._model = model.eval()
        self._decode = decode or PlainDecode(model)
        self._stop_id = stop_id
        self._batch_size = batch_size
        self._limit = model.config.block_size
        embedding = model.token_embedding.weight
        self._device = embedding.device
        rows = self._decode.rows(batch_size)
        self._cache = KVCache(model.config, rows, embedding.dtype, embedding.device)
        self._sequences: list[TokenSequence] = []
        self._ready: list[Tensor] = []  # logits (V,) of the last rows, which have just been read

    def __len__(self) -> int:
        return sum(sequence.ended is None for sequence in self._sequences)

    @property
    def free(self) -> int:
        """How many more sequences can be admitted."""
        return self._batch_size - len(self)

    @torch.inference_mode()
    def admit(self, sequences: Sequence[TokenSequence]) -> None:
        """Admits new sequences and reads their prompts, those of about one length in one pass.

        Raises:
            ValueError: There are more than `free`; or a prompt is empty, contains an id outside the
                vocabulary, or does not fit into a context that is not to be rebuilt.
        """
        if len(sequences) > self.free:
            raise ValueError(f"{len(sequences)} sequences for {self.free} free rows")
        for sequence in sequences:
            self._check(sequence)
            sequence.sampler = _sampler(sequence.options, self._stop_id)
        self._leave()
        self._prefill(sequences, self._limit)

    def _check(self, sequence: TokenSequence) -> None:
        prompt, config = sequence.tokens, self._model.config
        if not prompt:
            raise ValueError(
                "the prompt is empty; start from the end-of-text id to begin a new story"
            )
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise ValueError(f"the prompt contains ids outside 0 to {config.vocab_size - 1}")
        if sequence.options.past_context == "stop" and len(prompt) > config.block_size:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens is longer than the context of "
                f"{config.block_size}; past_context rebuild reads its end, or a shorter prompt"
            )

    @torch.inference_mode()
    def step(self) -> None:
        """Draws one token for each sequence, or its end.

        If a sequence has filled the context, its last half is read again first: learned positions
        cannot slide, and rotary ones could, but the layers' keys and values depend on the discarded
        tokens.
        """
        self._leave()
        self._make_room()
        if not self._sequences:
            return
        logits_BV = self._next_logits()
        groups: dict[Sampler, list[int]] = {}
        for row, sequence in enumerate(self._sequences):
            groups.setdefault(sequence.sampler, []).append(row)
        for sampler, rows in groups.items():
            logits_GV = logits_BV if len(groups) == 1 else logits_BV[rows]
            self._draw(sampler, logits_GV, [self._sequences[row] for row in rows])

    def _draw(self, sampler: Sampler, logits_GV: Tensor, group: Sequence[TokenSequence]) -> None:
        """Draws the next token, or the end, of sequences with the same way of sampling."""
        likeliest = max((s.options.log_probs or 0 for s in group), default=0)
        wanted = any(s.options.log_probs is not None for s in group)
        log_probs_GV = logits_GV.float().log_softmax(dim=-1) if wanted else None
        uniforms = [sequence.uniform() for sequence in group]
        tokens, new = [s.tokens for s in group], [s.n_new for s in group]
        chosen_G = sampler.choose(logits_GV, tokens, new, uniforms)
        if log_probs_GV is not None:
            of_chosen = log_probs_GV.gather(1, chosen_G[:, None])[:, 0].tolist()
            top = log_probs_GV.topk(min(likeliest, log_probs_GV.size(1)))
            for sequence, value, *best in zip(
                group, of_chosen, top.indices.tolist(), top.values.tolist(), strict=True
            ):
                if sequence.options.log_probs is not None:
                    sequence.log_probs.append(value)
                    pairs = list(zip(*best, strict=True))
                    sequence.alternatives.append(pairs[: sequence.options.log_probs])
        for sequence, token in zip(group, chosen_G.tolist(), strict=True):
            if token == self._stop_id:
                sequence.ended = "end of text"
                continue
            sequence.tokens.append(token)
            if sequence.n_new == sequence.options.max_new_tokens:
                sequence.ended = "max_new_tokens"
            elif sequence.options.past_context == "stop" and len(sequence.tokens) > self._limit:
                sequence.ended = "context"

    def _leave(self) -> None:
        """Frees the rows of ended sequences."""
        staying = [row for row, sequence in enumerate(self._sequences) if sequence.ended is None]
        if len(staying) < len(self._sequences):
            self._keep(staying)

    def _keep(self, rows: list[int]) -> None:
        first = len(self._sequences) - len(self._ready)
        self._ready = [self._ready[row - first] for row in rows if row >= first]
        self._sequences = [self._sequences[row] for row in rows]
        self._cache.keep(rows)

    def _make_room(self) -> None:
        """Reads the last half of sequences that have filled the context again."""
        read = len(self._sequences) - len(self._ready)
        full = {row for row in range(read) if self._cache.lengths[row] == self._limit}
        if full:
            sequences = [self._sequences[row] for row in sorted(full)]
            self._keep([row for row in range(len(self._sequences)) if row not in full])
            self._prefill(sequences, max(1, self._limit // 2))

    def _prefill(self, sequences: Sequence[TokenSequence], window: int) -> None:
        """Prefill: puts sequences into the next rows, and reads their last `window` tokens."""
        groups: dict[int, list[TokenSequence]] = {}
        for sequence in sequences:
            length = min(len(sequence.tokens), window)
            groups.setdefault(min(round_up(length, _PADDING), self._limit), []).append(sequence)
        for T, group in groups.items():
            ends = [sequence.tokens[-window:] for sequence in group]
            tokens_BT = torch.tensor([end + [0] * (T - len(end)) for end in ends])
            first = len(self._sequences)
            view = self._cache.grow(first, len(group), T)
            hidden_BTC = self._model.hidden(tokens_BT.to(self._device), view)
            self._cache.shorten(first, [len(end) for end in ends])
            last_BC = hidden_BTC[range(len(ends)), [len(end) - 1 for end in ends]]
            self._ready += self._model.unembed(last_BC).unbind()
            self._sequences += group

    def _next_logits(self) -> Tensor:
        """Logits (B, V) of every row's next token."""
        read = len(self._sequences) - len(self._ready)
        parts = [torch.stack(self._ready)] if self._ready else []
        if read:
            last = [sequence.tokens[-1] for sequence in self._sequences[:read]]
            parts.insert(0, self._decode(last, self._cache))
        self._ready = []
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _sampler(options: SamplingOptions, stop_id: int | None) -> Sampler:
    """One sampler for all options that choose in the same way."""
    same = replace(
        options,
        seed=0,
        num_samples=1,
        stop=(),
        max_new_tokens=max(1, options.min_new_tokens),
        past_context="rebuild",
        log_probs=None,
    )
    return _cached_sampler(same, stop_id)


_cached_sampler = functools.lru_cache(maxsize=256)(Sampler)


def stream(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, stop_id: int | None = None
) -> Iterator[int]:
    """Yields new token ids as they are drawn.

    The model is put into evaluation mode, and left in it. No other random state changes.

    Args:
        model: The network, as it was trained or from `for_inference`.
        prompt: Token ids to continue, at least one.
        options: How the next token is chosen, and when generation ends. Not read: `num_samples`,
            and `stop`, which needs a tokenizer (slm.generation.storyteller).
        stop_id: Generation ends before this id (end-of-text) would be yielded.

    Raises:
        ValueError: The prompt is empty, contains an id outside the vocabulary, or does not fit.
    """
    engine = Engine(model, stop_id)
    sequence = TokenSequence(prompt, options)
    engine.admit([sequence])
    while sequence.ended is None:
        before = sequence.n_new
        engine.step()
        yield from sequence.new_since(before)


def generate(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, stop_id: int | None = None
) -> list[int]:
    """The new token ids of `stream` as a list."""
    return list(stream(model, prompt, options, stop_id))
