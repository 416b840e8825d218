"""The demo page, in Gradio: stories side by side, each token with its probability and attention."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import

import gradio as gr
import torch

from slm.data.requests import split_words
from slm.generation.storyteller import PROMPT, Story, StoryRequest
from slm.model import GPT
from slm.model.attention_maps import attention_maps
from slm.serving.option_fields import each_sample, explain, option_fields, read_options
from slm.serving.scheduler import Job, QueueFullError, Scheduler
from slm.serving.story_html import Attention, stories_html

_ASSETS = Path(__file__).parent
_EXAMPLES = (
    PROMPT,
    "One day, a little cat found a red balloon.",
    '"Where is my hat?" asked the bear.',
    "Lily did not want to go to bed.",
)
_WORD_EXAMPLES = ("dragon, cake", "bird, rain, boat")
_SHOW_STORIES = "() => document.getElementById('stories').scrollIntoView({block: 'nearest'})"
_MOST_SAMPLES = 4
_MOST_CHARACTERS = 20_000
_MOST_TOKENS = 1000
_MOST_WORDS = 8
_MOST_TABS = 1000
_REFRESH = 0.2  # seconds


class Page:
    """The page's events.

    Args:
        scheduler: Generates the stories.
        model: The network in float32 on the CPU, of which attention is shown. Not the scheduler's,
            which is running.
        takes_words: Whether the model was trained on requests.
    """

    def __init__(self, scheduler: Scheduler, model: GPT, takes_words: bool) -> None:
        self._scheduler = scheduler
        self._tokenizer = scheduler.storyteller.tokenizer
        self._model = model
        self._takes_words = takes_words
        self._jobs: dict[str, Sequence[Job]] = {}  # of each browser's tab
        self._lock = threading.Lock()  # attention is read by hooks, one text at a time

    async def generate(self, request: gr.Request, *fields: Any) -> AsyncIterator[str]:
        """Generates stories; yields the page's stories as they grow.

        `fields` are the values of `inputs`, in their order.
        """
        self.stop(request)
        jobs = self._submit(*fields)
        self._jobs.pop(str(request.session_hash), None)
        self._jobs[str(request.session_hash)] = jobs
        while len(self._jobs) > _MOST_TABS:  # some never say that they are closed
            self._scheduler.cancel(self._jobs.pop(next(iter(self._jobs))))
        try:
            while not all(job.ended for job in jobs):
                started = time.perf_counter()
                html = stories_html(jobs, self._tokenizer)
                pause = 4 * (time.perf_counter() - started)  # long stories leave time for others
                yield html
                await asyncio.sleep(max(_REFRESH, pause))
        finally:
            self._scheduler.cancel(jobs)
        if self._jobs.get(str(request.session_hash), jobs) is jobs:  # the tab has none newer
            yield stories_html(jobs, self._tokenizer)

    def _submit(self, prompt: str, words: str, samples: float, *values: Any) -> list[Job]:
        """Submits the stories.

        Raises:
            Error: Something is not possible; Gradio shows the message.
        """
        for name, text in (("The prompt has", prompt), ("The words have", words or "")):
            if len(text) > _MOST_CHARACTERS:
                found = f"{name} {len(text):,} characters; at most {_MOST_CHARACTERS:,}."
                raise gr.Error(found, print_exception=False)
        try:
            options = read_options(int(samples), values)
        except ValueError as error:
            raise gr.Error(explain(error), print_exception=False) from error
        if options.max_new_tokens > _MOST_TOKENS:
            raise gr.Error(f"At most {_MOST_TOKENS:,} tokens.", print_exception=False)
        asked = split_words(words or "") if self._takes_words else ()
        if len(asked) > _MOST_WORDS:
            raise gr.Error(f"At most {_MOST_WORDS} words.", print_exception=False)
        stories = [
            Story(StoryRequest(prompt, each, asked), self._tokenizer)
            for each in each_sample(options)
        ]
        context, length = self._model.config.block_size, len(stories[0].continuation.tokens)
        if options.past_context == "stop" and length > context:
            found = f"The prompt has {length:,} tokens; the model's context is {context}."
            raise gr.Error(found, print_exception=False)
        try:
            return self._scheduler.submit(stories, lambda *event: None)
        except QueueFullError as error:
            found = "Too many stories are waiting. Try again soon."
            raise gr.Error(found, print_exception=False) from error

    def stop(self, request: gr.Request) -> None:
        """Ends the stories of a tab."""
        self._scheduler.cancel(self._jobs.get(str(request.session_hash), ()))

    def leave(self, request: gr.Request) -> None:
        """Forgets a tab that was closed."""
        self.stop(request)
        self._jobs.pop(str(request.session_hash), None)

    def attend(self, request: gr.Request, event: gr.EventData) -> Any:
        """The stories, with the attention of the token that was clicked; without, if none was."""
        jobs = self._jobs.get(str(request.session_hash), ())
        try:
            sample, token = int(event.sample), int(event.token)
            tokens = jobs[sample].story.continuation.tokens
        except (AttributeError, IndexError, TypeError, ValueError):  # whatever a browser may send
            return gr.skip()
        if not all(job.ended for job in jobs):
            return gr.skip()
        chosen = 0 < token < len(tokens)
        weights = self._weights(tokens[:token]) if chosen else []
        attention = Attention(sample, token, weights) if chosen else None
        return stories_html(jobs, self._tokenizer, attention)

    def _weights(self, tokens: Sequence[int]) -> list[float]:
        """How much the model looked at each of these tokens before it chose the next one.

        The mean over layers and heads, (T,), without the first position, to which heads attend that
        look for nothing (Xiao et al. 2023, arXiv 2309.17453). Tokens before the context get 0.
        """
        seen = list(tokens[-self._model.config.block_size :])
        with self._lock:
            maps_LHTT = attention_maps(self._model, torch.tensor(seen))
        weights_T = maps_LHTT[:, :, -1].mean(dim=(0, 1))
        weights_T[0] = 0.0
        return [0.0] * (len(tokens) - len(seen)) + weights_T.tolist()


def make_demo(scheduler: Scheduler, model: GPT, takes_words: bool, title: str) -> gr.Blocks:
    """The page."""
    page = Page(scheduler, model, takes_words)
    demo: gr.Blocks
    with gr.Blocks(title=f"Stories by {title}", analytics_enabled=False) as demo:
        gr.Markdown(f"## Stories by {title}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                prompt = gr.Textbox(PROMPT, label="How does the story begin?", lines=3)
                words = gr.Textbox(
                    label="Words that it is to contain",
                    placeholder="dragon, cake, brave",
                    visible=takes_words,
                )
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", min_width=80)
                samples = gr.Slider(1, _MOST_SAMPLES, 1, step=1, label="Stories, side by side")
                with gr.Accordion("How it continues", open=False):
                    options = option_fields()
                gr.Examples(list(_EXAMPLES), prompt, label="Beginnings")
                if takes_words:
                    gr.Examples(list(_WORD_EXAMPLES), words, label="Words")
            with gr.Column(scale=5, min_width=320):
                stories = gr.HTML(
                    stories_html([]),
                    js_on_load=(_ASSETS / "demo.js").read_text(encoding="utf-8"),
                    elem_id="stories",
                )
        fields = [prompt, words, samples, *options]
        gr.on(
            [start.click, prompt.submit, words.submit],
            page.generate,
            fields,
            stories,
            concurrency_limit=4 * scheduler.batch_size,
            show_progress="hidden",
            trigger_mode="multiple",  # a new generation ends the one under way
            api_visibility="private",
        )
        start.click(js=_SHOW_STORIES)
        stop.click(page.stop, queue=False, api_visibility="private")
        stories.click(page.attend, None, stories, show_progress="hidden", api_visibility="private")
        demo.unload(page.leave)
    return demo


def launch(demo: gr.Blocks, host: str | None, port: int | None, queue: int) -> None:
    """Starts the page's server, in threads of its own; None takes Gradio's defaults."""
    local = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), host, "localhost"]
    os.environ["no_proxy"] = ",".join(filter(None, local))  # Gradio asks this server if it runs
    fonts = ["system-ui", "sans-serif"]  # Gradio's own come from another host
    demo.queue(max_size=queue, api_open=False).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        max_file_size=1,  # nothing is to be uploaded
        prevent_thread_lock=True,
        footer_links=[],
        theme=gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=(_ASSETS / "demo.css").read_text(encoding="utf-8"),
    )
