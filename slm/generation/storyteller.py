"""Stories as text: from prompts to pieces of text, as they are generated."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from slm.data.tokenizer import StreamDecoder, Tokenizer
from slm.generation import SamplingOptions
from slm.generation.engine import Ending, Engine, TokenSequence
from slm.model import GPT

PROMPT = "Once upon a time"
"""The default beginning of a story."""


class StoryRequest:
    """One story to generate: how it begins, and how it continues.

    A plain class: Lightning takes tuples and dataclasses apart to look for tensors in them.
    """

    def __init__(self, prompt: str, options: SamplingOptions) -> None:
        self.prompt = prompt
        self.options = options


class Story:
    """A story, being generated or complete.

    Attributes:
        request: What was asked for.
        text: The text so far, after the prompt.
        seconds: From its prompt to its end, in company with the stories generated together with it.
    """

    def __init__(self, request: StoryRequest, tokenizer: Tokenizer) -> None:
        # Every story in the training data follows an end-of-text.
        prompt = [tokenizer.end_of_text, *tokenizer.encode(request.prompt)]
        self.request = request
        self.text = ""
        self.seconds = 0.0
        self.continuation = TokenSequence(prompt, request.options.seed)
        self._decoder = StreamDecoder(tokenizer)
        self._withheld = ""  # might be the beginning of a stop text
        self._read = 0
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
        return self.continuation.log_prob

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
    """Generates stories, with a network as it was trained or from `for_inference`."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def generate(self, request: StoryRequest) -> Iterator[str]:
        """Generates one story, in pieces of whole characters, without its prompt.

        Raises:
            ValueError: The prompt does not fit into a context that is not to be rebuilt.
        """
        for _, piece in self.generate_all([request], request.options, batch_size=1):
            if piece:
                yield piece

    def generate_all(
        self,
        requests: Iterable[StoryRequest],
        options: SamplingOptions,
        batch_size: int,
        compile: bool = False,
    ) -> Iterator[tuple[Story, str]]:
        """Generates stories, `batch_size` at once; the requests' options differ only in the seed.

        Yields:
            At every token of a story, the story and the piece by which it has grown, which may be
            empty. Stories begin in the order of the requests.

        Raises:
            ValueError: The options of a request differ, or a prompt does not fit.
        """
        batch = Engine(self.model, options, self.tokenizer.end_of_text, batch_size, compile)
        waiting = iter(requests)
        running: dict[Story, None] = {}  # in the order of the requests
        while True:
            # A few at a time: to read one prompt costs as much as to read several.
            if not len(batch) or batch.free >= max(1, batch_size // 8):
                new = [Story(request, self.tokenizer) for request in islice(waiting, batch.free)]
                for story in new:
                    if replace(story.request.options, seed=options.seed) != options:
                        raise ValueError(
                            "stories that are generated together need the same options"
                        )
                    running[story] = None
                batch.admit([story.continuation for story in new])
            if not len(batch):
                return
            batch.step()
            for story in list(running):
                piece = story.advance()
                if story.ended is not None:
                    del running[story]
                yield story, piece


def example_story(model: GPT, tokenizer: Tokenizer) -> str:
    """A story with the default prompt and options, its prompt included."""
    return PROMPT + "".join(
        Storyteller(model, tokenizer).generate(StoryRequest(PROMPT, SamplingOptions()))
    )
