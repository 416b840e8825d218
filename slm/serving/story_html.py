"""Stories as HTML: tokens tinted by their probability, with what else was likely."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from slm.data.tokenizer import StreamDecoder, Tokenizer
from slm.generation.engine import TokenSequence
from slm.printable import printable
from slm.serving.scheduler import Job

_LEGEND = (
    "The redder a word, the less likely it was. Point at a word, or tap it, for the alternatives. "
    "Click it to see in blue what the model looked at; click beside the words to end that."
)
_PROMPT_TOKENS = 200
"""Of a longer prompt only the end is shown."""
_WELCOME = "Write how a story begins, or take an example, and press Generate."


@dataclass(frozen=True)
class Attention:
    """What the model looked at before it chose a token."""

    sample: int
    token: int
    """Index of the token, the prompt's included."""
    weights: Sequence[float]
    """Of each token before it."""


def stories_html(
    jobs: Sequence[Job], tokenizer: Tokenizer | None = None, attention: Attention | None = None
) -> str:
    """Stories side by side; without any, what to do."""
    if not jobs or tokenizer is None:
        return f'<p class="note">{escape(_WELCOME)}</p>'
    cards = [
        _card(index, job, tokenizer, attention if attention and attention.sample == index else None)
        for index, job in enumerate(jobs)
    ]
    return f'<p class="note">{escape(_LEGEND)}</p><div class="stories">{"".join(cards)}</div>'


def _card(index: int, job: Job, tokenizer: Tokenizer, attention: Attention | None) -> str:
    text = "".join(_spans(index, job, tokenizer, attention))
    return (
        f'<article class="story{" attending" * bool(attention)}"><div class="text">{text}</div>'
        f'<p class="status">{escape(_status(job))}</p></article>'
    )


def _spans(
    index: int, job: Job, tokenizer: Tokenizer, attention: Attention | None
) -> Iterator[str]:
    """A span for each token, or for several that make up a character."""
    sequence, prompt = job.story.continuation, job.story.request.prompt
    tokens = list(sequence.tokens)
    n_prompt = sequence.prompt_length
    first = n_prompt - len(tokenizer.encode(prompt))  # before it, end-of-texts and words
    shown = max(first, n_prompt - _PROMPT_TOKENS)
    if shown > first:
        yield '<span class="given">… </span>'
    decoder, length = StreamDecoder(tokenizer), len(job.story.text)
    for position in range(shown, len(tokens)):
        text, new = decoder.push(tokens[position]), position - n_prompt
        if new >= 0:  # not what may be a stop text
            text, length = text[:length], length - len(text[:length])
        if text:
            likely = _likely(sequence, new, tokenizer) if new >= 0 else ""
            looks = _looks(sequence, position, new, attention)
            yield (
                f'<span {looks} data-sample="{index}" data-token="{position}" '
                f'data-likely="{_safe(likely)}" tabindex="0">{_safe(printable(text))}</span>'
            )


def _looks(sequence: TokenSequence, position: int, new: int, attention: Attention | None) -> str:
    """The class and style of a token."""
    classes = ["t"] if new >= 0 else ["t", "given"]
    style = f"--p:{math.exp(sequence.log_probs[new]):.2f}" if new >= 0 else ""
    if attention and position < len(attention.weights):
        strongest = max(attention.weights) or 1.0
        classes.append("seen")
        style += f";--a:{attention.weights[position] / strongest:.2f}"
    if attention and position == attention.token:
        classes.append("chosen")
    return f'class="{" ".join(classes)}" style="{style}"'


def _likely(sequence: TokenSequence, new: int, tokenizer: Tokenizer) -> str:
    """The probabilities of a new token and of others in its place, a line each."""
    chosen = sequence.new_tokens[new]
    rows = dict(sequence.alternatives[new]) | {chosen: sequence.log_probs[new]}
    lines = []
    for token, value in sorted(rows.items(), key=lambda row: -row[1]):
        name = "(the end)" if token == tokenizer.end_of_text else tokenizer.decode([token])
        name = printable(name.replace("\n", "⏎"))
        lines.append(f"{'▸' if token == chosen else ' '} {math.exp(value):6.1%} {name}")
    return "\n".join(lines)


def _status(job: Job) -> str:
    story = job.story
    tokens = f"{story.n_tokens} token{'s' * (story.n_tokens != 1)}"
    endings = {
        "end of text": "ended by itself",
        "max_new_tokens": f"cut at {tokens}",
        "context": "the context is full",
        "stop": "ended before the stop text",
        "cancelled": "stopped",
    }
    if job.failure:
        ending = {"timeout": "took too long", "error": "failed"}.get(job.failure, "stopped")
    elif story.ended is None:
        ending = "…" if story.n_tokens else "waiting …"
    else:
        ending = endings[story.ended]
    parts = [f"seed {story.request.options.seed}", tokens]
    if story.seconds:
        parts.append(f"{story.n_tokens / story.seconds:.0f} tokens/s")
    return " · ".join([*parts, ending])


def _safe(text: str) -> str:
    """Text that neither HTML nor Gradio's templates, `${…}` and `{{…}}`, interpret."""
    found = escape(text)
    return "".join(f"&#{ord(c)};" if c in "${}`\\" else c for c in found)
