"""The demo page's fields for the sampling options, and how their values are read."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from slm.generation import SamplingOptions

_ALTERNATIVES = 5
_DEFAULTS = SamplingOptions()
_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram",
    "min_new_tokens", "max_new_tokens", "seed", "past_context", "stop",
)  # fmt: skip
_WHOLE = {"top_k", "no_repeat_ngram", "min_new_tokens", "max_new_tokens", "seed"}
_NONE_IF_ZERO = {"top_k", "top_p", "min_p", "no_repeat_ngram"}


def read_options(samples: int, values: Sequence[Any]) -> SamplingOptions:
    """The options of the page's fields; a field that was emptied has its default.

    Raises:
        ValueError: One is out of range.
    """
    found: dict[str, Any] = {}
    for name, value in zip(_OPTIONS, values, strict=True):
        if name == "stop":
            found[name] = (value.replace("\\n", "\n"),) if value else ()
        elif value is None:
            continue
        elif name in _NONE_IF_ZERO and not value:
            found[name] = None
        else:
            found[name] = int(value) if name in _WHOLE else value
    return SamplingOptions(**found, num_samples=samples, log_probs=_ALTERNATIVES)


_ON_THE_PAGE = {
    "top_k": "top-k", "top_p": "top-p", "min_p": "min-p", "no_repeat_ngram": "no repeated n-gram",
    "repetition_penalty": "repetition penalty", "min_new_tokens": "tokens, at least",
    "max_new_tokens": "tokens, at most", "num_samples": "the number of stories", "null": "0",
}  # fmt: skip


def explain(error: Exception) -> str:
    """An error of the options, with the page's names for them."""
    message = str(error)
    for name, shown in _ON_THE_PAGE.items():
        message = message.replace(name, f"“{shown}”" if name != "null" else shown)
    return f"{message}."


def each_sample(options: SamplingOptions) -> list[SamplingOptions]:
    """The options of each story, with a seed of its own."""
    return [
        replace(options, seed=options.seed + sample, num_samples=1)
        for sample in range(options.num_samples)
    ]


def option_fields() -> list[Any]:
    """A field for each of `_OPTIONS`, in this order."""
    with gr.Row():
        temperature = gr.Number(
            _DEFAULTS.temperature, label="temperature", info="0: the likeliest", step=0.1,
            min_width=130,
        )  # fmt: skip
        top_k = gr.Number(_DEFAULTS.top_k, label="top-k", info="0: all tokens", min_width=130)
        top_p = gr.Number(0, label="top-p", info="0: off", step=0.05, min_width=130)
        min_p = gr.Number(0, label="min-p", info="0: off", step=0.01, min_width=130)
    with gr.Row():
        penalty = gr.Number(
            _DEFAULTS.repetition_penalty, label="repetition penalty", info="1: none", step=0.05,
            min_width=130,
        )  # fmt: skip
        ngram = gr.Number(0, label="no repeated n-gram", info="0: off", min_width=130)
        least = gr.Number(0, label="tokens, at least", min_width=130)
        most = gr.Number(_DEFAULTS.max_new_tokens, label="tokens, at most", min_width=130)
    seed = gr.Number(_DEFAULTS.seed, label="seed", info="the same seed, the same story")
    past = gr.Radio(["rebuild", "stop"], value="rebuild", label="when the context is full")
    stop = gr.Textbox(label="end before this text", placeholder="The end")
    return [temperature, top_k, top_p, min_p, penalty, ngram, least, most, seed, past, stop]
