"""Stories as text: from prompts to pieces of text, as they are generated."""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from slm.data.tokenizer import StreamDecoder, Tokenizer
from slm.generation import SamplingOptions
from slm.generation.decode import PlainDecode
from slm.generation.engine import Ending, Engine, TokenSequence
from slm.model import GPT

PROMPT = "Once upon a time"
"""The default beginning of a story."""


class StoryRequest:
    """One story to generate: how it begins, how it continues, and words that it is to contain.

    A plain class: Lightning takes tuples and dataclasses apart to look for tensors in them.

    Args:
        prompt: The beginning.
        options: How it continues; `num_samples` is not read.
        words: Only a model that was trained with `--data.request words` knows what they mean.
    """

    def __init__(self, prompt: str, options: SamplingOptions, words: Sequence[str] = ()) -> None:
        self.prompt = prompt
        self.options = options
        self.words = tuple(words)


class Story:
    """A story, being generated or complete.

    Args:
        request: What was asked for.
        tokenizer: The model's.
        prompt_ids: Token ids to continue, instead of those of the request's prompt and words.

    Attributes:
        request: What was asked for.
        text: The text so far, after the prompt.
        seconds: From its prompt to its end, in company with the stories generated together with it.
    """

    def __init__(
        self, request: StoryRequest, tokenizer: Tokenizer, prompt_ids: Sequence[int] | None = None
    ) -> None:
        self.request = request
        self.text = ""
        self.seconds = 0.0
        if prompt_ids is None:
            prompt_ids = tokenizer.encode_prompt(request.prompt, request.words)
        self.continuation = TokenSequence(prompt_ids, request.options)
        self._decoder = StreamDecoder(tokenizer)
        self._withheld = ""  # might be the beginning of a stop text
        self._read = 0
        self._started = 0.0

    def begin(self) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    @property
    def ended(self) -> Ending | None:
        """Why it ended; None if it has not."""
        return self.continuation.ended

    @property
    def n_tokens(self) -> int:
        """New tokens, including those of a stop text."""
        return self.continuation.n_new

    @property
    def log_probability(self) -> float:
        """Of its new tokens and its end, in nats, if the options ask for it."""
        return sum(self.continuation.log_probs)

    def advance(self) -> str:
        """Reads the new tokens; returns the text that they complete."""
        tokens = self.continuation.new_since(self._read)
        self._read += len(tokens)
        coming = self._withheld + "".join(self._decoder.push(token) for token in tokens)
        if self.ended is not None:
            coming += self._decoder.flush()
        stops = self.request.options.stop
        minimum = self.request.options.min_new_tokens
        found = [coming.find(stop) for stop in stops if stop in coming]
        if found and self.n_tokens >= minimum:
            self.continuation.ended = "stop"
            coming = coming[: min(found)]
        held = 0 if self.ended else max((_overlap(coming, stop) for stop in stops), default=0)
        piece = coming[: len(coming) - held]
        self._withheld = coming[len(piece) :]
        self.text += piece
        if self.ended is not None:
            self.seconds = time.perf_counter() - self._started
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of a text that begins a stop text, without being all of it."""
    return next(n for n in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:n]))


class Storyteller:
    """Generates stories, with a network as it was trained or from `for_inference`.

    Args:
        model: The network.
        tokenizer: Its tokenizer.
        decode: How its decode pass is run, as for `Engine`.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, decode: PlainDecode | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decode = decode

    def generate(self, request: StoryRequest) -> Iterator[str]:
        """Generates one story, in pieces of whole characters, without its prompt.

        Raises:
            ValueError: The prompt does not fit into a context that is not to be rebuilt.
        """
        for _, piece in self.generate_all([request], batch_size=1):
            if piece:
                yield piece

    def generate_all(
        self,
        requests: Iterable[StoryRequest],
        batch_size: int,
    ) -> Iterator[tuple[Story, str]]:
        """Generates stories, `batch_size` at once.

        Yields:
            At every token of a story, the story and the piece by which it has grown, which may be
            empty. Stories begin in the order of the requests.

        Raises:
            ValueError: A prompt does not fit.
        """
        batch = StoryBatch(self, batch_size)
        waiting = iter(requests)
        while True:
            few = batch.room(batch_size)
            batch.admit([Story(request, self.tokenizer) for request in islice(waiting, few)])
            if not len(batch):
                return
            yield from batch.step()


class StoryBatch:
    """Stories that are being generated together; others may join at any time."""

    def __init__(self, storyteller: Storyteller, batch_size: int) -> None:
        end_of_text = storyteller.tokenizer.end_of_text
        self._engine = Engine(storyteller.model, end_of_text, batch_size, storyteller.decode)
        self._running: list[Story] = []
        self._few = max(1, batch_size // 8)

    def __len__(self) -> int:
        return len(self._engine)

    def room(self, waiting: int) -> int:
        """How many of the waiting stories to admit now.

        If many wait, none while few rows are free: to read one prompt costs as much as to read
        several.
        """
        free = self._engine.free
        return min(free, waiting) if free >= min(self._few, waiting) or not len(self) else 0

    def admit(self, stories: Sequence[Story]) -> None:
        """Admits stories, at most as many as there are free rows, and reads their prompts.

        Raises:
            ValueError: A prompt does not fit.
        """
        for story in stories:
            story.begin()
        self._engine.admit([story.continuation for story in stories])
        self._running += stories

    def step(self) -> list[tuple[Story, str]]:
        """Generates a token of each story: the stories, and the pieces by which they have grown.

        A story that the caller has cancelled, by setting its continuation's `ended`, is not among
        them.
        """
        self._running = [story for story in self._running if story.ended is None]
        self._engine.step()
        return [(story, story.advance()) for story in self._running]


def example_story(model: GPT, tokenizer: Tokenizer) -> str:
    """A story with the default prompt and options, its prompt included."""
    return PROMPT + "".join(
        Storyteller(model, tokenizer).generate(StoryRequest(PROMPT, SamplingOptions()))
    )
