"""Stories as answers of OpenAI's completions protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm.data.tokenizer import StreamDecoder, Tokenizer
from slm.generation.engine import Ending
from slm.generation.storyteller import Story
from slm.serving.protocol import CompletionRequest, Prompt

FINISH_REASONS: dict[Ending, str] = {
    "end of text": "stop",
    "stop": "stop",
    "max_new_tokens": "length",
    "context": "length",
}
Lines = dict[str, Any]
"""An object of JSON."""


class LogProbs:
    """The `logprobs` of a choice: lists, with an entry for each token.

    Args:
        tokenizer: The model's.
        offset: Characters of the choice's text before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._offset = offset

    def entries(
        self,
        tokens: Sequence[int],
        log_probs: Sequence[float | None],
        alternatives: Sequence[Sequence[tuple[int, float]]],
    ) -> dict[str, Any]:
        """The entries of the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(token))
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": list(log_probs),
            "top_logprobs": [
                {self._name(token): value for token, value in pairs} for pairs in alternatives
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        r"""A token's text; `bytes:\xe2\x80` if it is not whole characters."""
        if token == self._tokenizer.end_of_text:
            return "<|endoftext|>"
        data = self._tokenizer.token_bytes[token]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclass(frozen=True)
class Echo:
    """A prompt's text and log-probabilities, if it is part of the answer."""

    text: str
    log_probs: Lines | None


class Answer:
    """Turns stories into entries of `choices`."""

    def __init__(
        self,
        body: CompletionRequest,
        prompts: Sequence[Prompt],
        stories: Sequence[Story],
        echoes: Sequence[Echo],
        tokenizer: Tokenizer,
    ) -> None:
        self.body = body
        self.prompts = prompts
        self.stories = stories
        self._echoes = [echo for echo in echoes for _ in range(body.n)]
        self._log_probs = [LogProbs(tokenizer, len(echo.text)) for echo in self._echoes]
        self._sent = [-1] * len(stories)  # tokens; -1 before the echo

    def whole(self) -> Lines:
        """`choices` and `usage` when all stories are complete."""
        choices = [
            self.part(index, story.text, True) or {} for index, story in enumerate(self.stories)
        ]
        if self.body.max_tokens == 0:
            choices = [entry | {"finish_reason": "length"} for entry in choices]
        return {"choices": choices, "usage": usage(self.prompts, self.stories)}

    def part(self, index: int, piece: str, last: bool) -> Lines | None:
        """The entry for a piece; None if there is nothing to send yet."""
        story, log_probs = self.stories[index], None
        first, start = self._sent[index] < 0, max(0, self._sent[index])
        text = self._echoes[index].text + piece if first else piece
        if self.body.logprobs is not None:
            sequence = story.continuation
            tokens = sequence.new_since(start)  # more may follow at any moment
            span = slice(start, start + len(tokens))
            start = span.stop
            log_probs = self._log_probs[index].entries(
                tokens, sequence.log_probs[span], sequence.alternatives[span]
            )
            if first and (echo := self._echoes[index].log_probs):
                log_probs = {name: echo[name] + log_probs[name] for name in echo}
        if not (text or last or (log_probs and log_probs["tokens"])):
            return None
        self._sent[index] = start
        return choice(index, story, text, log_probs, last)


def choice(index: int, story: Story, text: str, log_probs: Any, ended: bool) -> dict[str, Any]:
    """An entry of `choices`; `seed` is an addition to the protocol."""
    reason = FINISH_REASONS.get(story.ended) if ended and story.ended else None
    return {
        "index": index,
        "text": text,
        "logprobs": log_probs,
        "finish_reason": reason,
        "seed": story.request.options.seed,
    }


def usage(prompts: Sequence[Prompt], stories: Sequence[Story]) -> dict[str, int]:
    """The token counts: of the prompts, with their end-of-text, and of the new tokens."""
    prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    completion_tokens = sum(story.n_tokens for story in stories)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
