"""From prompts to new tokens: one story, or many side by side.

Shape suffixes: B rows (stories under way), T positions, C width, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from slm.generation.cache import CacheView, KVCache, StaticCache, round_up
from slm.generation.options import SamplingOptions
from slm.generation.sampling import Sampler
from slm.model.gpt import GPT

_PADDING = 16
"""Prompts are read in lengths that are multiples of this, those of one length together; a prompt
is then read by the same arithmetic whatever is read beside it."""

Ending = Literal["end of text", "max_new_tokens", "context", "stop"]


class TokenSequence:
    """A prompt, and the tokens that have come behind it.

    Args:
        prompt: Token ids to go on from, at least one.
        seed: Of this story's own random numbers.

    Attributes:
        tokens: The prompt and the new tokens, without the end-of-text that ends them.
        log_prob: Sum over the new tokens, and the end-of-text if it came, of the natural
            logarithm of the probability that the model gave them; 0 unless asked for.
        ended: Why nothing more comes, or None while something does. Whoever reads along may set
            it to "stop"; no token comes after that.
    """

    def __init__(self, prompt: Sequence[int], seed: int) -> None:
        self.tokens = list(prompt)
        self.log_prob = 0.0
        self.ended: Ending | None = None
        self._prompt_length = len(self.tokens)
        self._generator = torch.Generator().manual_seed(seed)
        self._uniforms: list[float] = []

    @property
    def new_tokens(self) -> list[int]:
        """The tokens behind the prompt."""
        return self.new_since(0)

    def new_since(self, count: int) -> list[int]:
        """The tokens behind the prompt and the first `count` new ones."""
        return self.tokens[self._prompt_length + count :]

    @property
    def n_new(self) -> int:
        """How many new tokens there are."""
        return len(self.tokens) - self._prompt_length

    def uniform(self) -> float:
        """The random number for the next token, from 0 to 1; the n-th depends on the seed and n."""
        if not self._uniforms:
            block = torch.rand(64, generator=self._generator, dtype=torch.float64)
            self._uniforms = block.tolist()[::-1]
        return self._uniforms.pop()


class Engine:
    """Stories that are told side by side, each as if it were alone.

    A story takes a row of the cache when it is admitted and leaves it when it ends; others may
    be admitted at any time. What a story says does not depend on the others, up to the rounding
    of the matrix products; on a CPU, with a network of `for_inference`, not even by that.

    Args:
        model: The network; it is put into evaluation mode, and left in it.
        options: How the next token is chosen, and when a story ends. Not read: `seed`,
            `num_samples` and `stop`, which are about one story and about text.
        stop_id: The token (end-of-text) that ends a story.
        rows: How many stories at once.
        compile: Whether the pass that reads one token of each story goes through torch.compile,
            on CUDA with CUDA graphs: some ten seconds, and no Python in the pass after that.
    """

    def __init__(
        self,
        model: GPT,
        options: SamplingOptions,
        stop_id: int | None = None,
        rows: int = 1,
        compile: bool = False,
    ) -> None:
        self._model = model.eval()
        self._options = options
        self._stop_id = stop_id
        self._sampler = Sampler(options, stop_id)
        self._rows = rows
        self._limit = model.config.block_size
        embedding = model.token_embedding.weight
        self._device = embedding.device
        self._cache = KVCache(model.config, rows, embedding.dtype, embedding.device)
        self._told: list[TokenSequence] = []
        self._slots = self._cache.static_view() if compile else None
        self._fits = False
        self._ready: list[Tensor] = []  # logits (V,) of the last rows, which have just been read

    def __len__(self) -> int:
        """How many stories are under way."""
        return sum(story.ended is None for story in self._told)

    @property
    def free(self) -> int:
        """How many more stories can be admitted."""
        return self._rows - len(self)

    @torch.inference_mode()
    def admit(self, stories: Sequence[TokenSequence]) -> None:
        """Takes in new stories and reads their prompts, those of about one length in one pass.

        Raises:
            ValueError: There are more than `free`; or a prompt is empty, holds an id outside the
                vocabulary, or does not fit into a context that is not to be rebuilt.
        """
        if len(stories) > self.free:
            raise ValueError(f"{len(stories)} stories for {self.free} free rows")
        for story in stories:
            self._check(story.tokens)
        self._leave()
        self._read(stories, self._limit)

    def _check(self, prompt: Sequence[int]) -> None:
        config = self._model.config
        if not prompt:
            raise ValueError(
                "the prompt is empty; start from the end-of-text id to begin a new story"
            )
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise ValueError(f"the prompt holds ids outside 0 to {config.vocab_size - 1}")
        if self._options.past_context == "stop" and len(prompt) > config.block_size:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens is longer than the context of "
                f"{config.block_size}; past_context rebuild reads its end, or a shorter prompt"
            )

    @torch.inference_mode()
    def step(self) -> None:
        """Draws one token for each story under way, or its end.

        A story that has filled the context first has its last half read anew: learned positions
        cannot slide, and rotary ones could, but what the layers hold was computed from the tokens
        that are to be forgotten.
        """
        self._leave()
        self._make_room()
        if not self._told:
            return
        logits_BV = self._next_logits()
        new = [story.n_new for story in self._told]
        uniforms = [story.uniform() for story in self._told]
        log_probs_BV = logits_BV.float().log_softmax(dim=-1) if self._options.log_probs else None
        chosen_B = self._sampler.choose(
            logits_BV, [story.tokens for story in self._told], new, uniforms
        )
        if log_probs_BV is not None:
            of_chosen_B1 = log_probs_BV.gather(1, chosen_B[:, None])
            for story, value in zip(self._told, of_chosen_B1[:, 0].tolist(), strict=True):
                story.log_prob += value
        for story, token in zip(self._told, chosen_B.tolist(), strict=True):
            if token == self._stop_id:
                story.ended = "end of text"
                continue
            story.tokens.append(token)
            if story.n_new == self._options.max_new_tokens:
                story.ended = "max_new_tokens"
            elif self._options.past_context == "stop" and len(story.tokens) > self._limit:
                story.ended = "context"

    def _leave(self) -> None:
        """Gives the rows of ended stories free."""
        staying = [row for row, story in enumerate(self._told) if story.ended is None]
        if len(staying) < len(self._told):
            self._keep(staying)

    def _keep(self, rows: list[int]) -> None:
        first = len(self._told) - len(self._ready)
        self._ready = [self._ready[row - first] for row in rows if row >= first]
        self._told = [self._told[row] for row in rows]
        self._cache.keep(rows)

    def _make_room(self) -> None:
        """Reads the last half of stories that have filled the context anew."""
        read = len(self._told) - len(self._ready)
        full = {row for row in range(read) if self._cache.lengths[row] == self._limit}
        if full:
            stories = [self._told[row] for row in sorted(full)]
            self._keep([row for row in range(len(self._told)) if row not in full])
            self._read(stories, max(1, self._limit // 2))

    def _read(self, stories: Sequence[TokenSequence], window: int) -> None:
        """Puts stories into the next rows, and reads their last `window` tokens."""
        groups: dict[int, list[TokenSequence]] = {}
        for story in stories:
            length = min(len(story.tokens), window)
            groups.setdefault(min(round_up(length, _PADDING), self._limit), []).append(story)
        for T, group in groups.items():
            ends = [story.tokens[-window:] for story in group]
            tokens_BT = torch.tensor([end + [0] * (T - len(end)) for end in ends])
            first = len(self._told)
            past = self._cache.grow(first, len(group), T)
            hidden_BTC = self._model.hidden(tokens_BT.to(self._device), past)
            self._cache.shorten(first, [len(end) for end in ends])
            last_BC = hidden_BTC[range(len(ends)), [len(end) - 1 for end in ends]]
            self._ready += self._model.unembed(last_BC).unbind()
            self._told += group

    def _next_logits(self) -> Tensor:
        """Logits (B, V) of every row's next token."""
        read = len(self._told) - len(self._ready)
        parts = [torch.stack(self._ready)] if self._ready else []
        if read:
            last = [story.tokens[-1] for story in self._told[:read]]
            parts.insert(
                0, self._pass(last) if self._slots is None else self._fixed_pass(last, self._slots)
            )
        self._ready = []
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _pass(self, last: list[int]) -> Tensor:
        """Reads one token in each of the first rows: logits (B, V) of the next."""
        tokens_B1 = torch.tensor([last], device=self._device).T
        past = self._cache.grow(0, len(last), 1)
        return self._model.unembed(self._model.hidden(tokens_B1, past)[:, 0])

    def _fixed_pass(self, last: list[int], slots: StaticCache) -> Tensor:
        """The same by a compiled graph of fixed shapes, in which all rows take part.

        Those without a token to read write into a slot that is written again before it is seen.
        """
        tokens_B1 = torch.tensor([last + [0] * (self._rows - len(last))], device=self._device).T
        lengths = [min(length, self._limit - 1) for length in self._cache.lengths]
        positions_B1 = torch.tensor([lengths], device=self._device).T
        run = fixed_pass(self._device.type)
        if self._fits:
            # To look again at every token whether the graph fits would cost a tenth of the time;
            # nothing that it asks for changes as long as this batch lives.
            with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
                logits_BV = run(self._model, tokens_B1, positions_B1, slots)
        else:
            # A graph for each model and number of rows; never the plain pass without a word.
            with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
                logits_BV = run(self._model, tokens_B1, positions_B1, slots)
        self._fits = True
        self._cache.grow(0, len(last), 1)
        # What is read next would overwrite the output of a CUDA graph.
        return logits_BV[: len(last)].clone()


@functools.cache
def fixed_pass(device: str) -> Callable[[GPT, Tensor, Tensor, StaticCache], Tensor]:
    """`_pass` over all rows and all slots, compiled when it is first called with some shapes."""

    def run(model: GPT, tokens: Tensor, positions: Tensor, slots: StaticCache) -> Tensor:
        mask_GTS = slots.mask[positions].repeat_interleave(model.config.n_head, 0)
        past = CacheView(positions, mask_GTS, slots.layers, None)
        return model.unembed(model.hidden(tokens, past)[:, 0])

    if device == "cuda":
        return torch.compile(run, dynamic=False, mode="reduce-overhead")  # CUDA graphs
    return torch.compile(run, dynamic=False, options={"cpp_wrapper": True})


def stream(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, stop_id: int | None = None
) -> Iterator[int]:
    """Yields new token ids as they are drawn.

    The model is put into evaluation mode, and left in it. No other random state is touched.

    Args:
        model: The network, as it was trained or as `for_inference` made it.
        prompt: Token ids to go on from, at least one.
        options: How the next token is chosen, and when the story ends. Not read: `num_samples`,
            and `stop`, for which there has to be a tokenizer (slm.generation.storyteller).
        stop_id: Generation ends before this id (end-of-text) would be yielded.

    Raises:
        ValueError: The prompt is empty, holds an id outside the vocabulary, or does not fit.
    """
    batch = Engine(model, options, stop_id)
    story = TokenSequence(prompt, options.seed)
    batch.admit([story])
    while story.ended is None:
        told = story.n_new
        batch.step()
        yield from story.new_since(told)


def generate(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, stop_id: int | None = None
) -> list[int]:
    """The new token ids of `stream`, all at once. Same arguments, same errors."""
    return list(stream(model, prompt, options, stop_id))
