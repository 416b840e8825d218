"""The demo page: its events, its HTML, and the command."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from html import unescape
from types import SimpleNamespace

import httpx
import pytest
import torch
from conftest import checkpoint, refuse

from slm.data.tokenizer import Tokenizer
from slm.generation import SamplingOptions
from slm.generation.storyteller import Story, StoryRequest, Storyteller
from slm.model import GPT, GPTConfig
from slm.printable import printable
from slm.serving.scheduler import Job, Limits, Scheduler
from slm.serving.story_html import Attention, stories_html

gr = pytest.importorskip("gradio")

from slm.serving.demo import Page, make_demo  # noqa: E402

TOKENIZER = Tokenizer("bpe", {bytes([byte]): byte for byte in range(256)}, 257)
TAB, OTHER = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
#          temperature, top-k, top-p, min-p, penalty, n-gram, least, most, seed, past, stop
OPTIONS = [0.8, 50, 0, 0, 1, 0, 30, 30, 7, "rebuild", ""]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def scheduler(model):
    scheduler = Scheduler(Storyteller(model, TOKENIZER), 4, Limits(queue=2))
    yield scheduler
    scheduler.close()


@pytest.fixture
def page(scheduler, model, monkeypatch):
    monkeypatch.setattr("slm.serving.demo._MOST_TABS", 1)
    return Page(scheduler, model, takes_words=True)


def generate(page, *fields, tab=TAB):
    async def collect():
        return [html async for html in page.generate(tab, *fields)]

    return asyncio.run(collect())


def text_of(html):
    """What a browser shows of the stories."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_the_page_shows_the_stories_of_predict(page, model):
    html = generate(page, "Tom", "", 2, *OPTIONS)[-1]
    for seed in (7, 8):
        options = SamplingOptions(min_new_tokens=30, max_new_tokens=30, seed=seed)
        request = StoryRequest("Tom", options)
        story = "".join(Storyteller(model, TOKENIZER).generate(request))
        assert printable(f"Tom{story}").rstrip("\ufffd") in text_of(html)
        assert f"seed {seed} · 30 tokens" in html
    assert html.count("cut at 30 tokens") == 2
    assert html.count("<article") == 2


def test_words_change_a_story_of_a_model_that_takes_them(page, scheduler, model):
    plain = generate(page, "Tom", "", 1, *OPTIONS)[-1]
    assert generate(page, "Tom", "dragon, cake", 1, *OPTIONS)[-1] != plain
    other = Page(scheduler, model, takes_words=False)
    again = generate(other, "Tom", "dragon, cake", 1, *OPTIONS)[-1]
    assert text_of(again).partition("seed")[0] == text_of(plain).partition("seed")[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["x" * 20_001, "", 1, *OPTIONS], "20,001 characters; at most 20,000"),
        (["Tom", "", 1, -1, *OPTIONS[1:]], "temperature is -1"),
        (
            ["Tom", "", 2, 0, *OPTIONS[1:]],
            "“the number of stories” is 2; it must be 1 with temperature 0",
        ),
        (["Tom", "", 1, 0, 50, 0.5, *OPTIONS[3:]], "“top-p” is 0.5; it must be 0 with"),
        (["Tom", "x" * 20_001, 1, *OPTIONS], "The words have 20,001 characters"),
        (["Tom", "a " * 9, 1, *OPTIONS], "At most 8 words"),
        (["Tom", "", 1, *OPTIONS[:7], 1001, *OPTIONS[8:]], "At most 1,000 tokens"),
        (["x" * 40, "", 1, *OPTIONS[:9], "stop", ""], "41 tokens; the model's context is 32"),
    ],
)
def test_what_is_not_possible_is_explained(page, scheduler, fields, message):
    with pytest.raises(gr.Error, match=message):
        generate(page, *fields)
    assert scheduler.running == scheduler.waiting == 0


def test_fields_that_were_emptied_have_their_defaults(page):
    (default,) = {generate(page, "Tom", "", 1, *OPTIONS)[-1].partition("· 30")[0]}
    emptied = [None, None, None, None, None, None, 30, 30, 7, None, None]
    assert generate(page, "Tom", None, 1, *emptied)[-1].partition("· 30")[0] == default


def test_stopping_ends_the_stories_of_this_tab_only(page, scheduler, monkeypatch):
    monkeypatch.setattr("slm.serving.demo._MOST_TOKENS", 10**6)
    monkeypatch.setattr("slm.serving.demo._MOST_TABS", 2)
    endless = [*OPTIONS[:6], 10**6, 10**6, *OPTIONS[8:]]

    async def run():
        ours, others = (page.generate(tab, "Tom", "", 1, *endless) for tab in (TAB, OTHER))
        grown = [await anext(ours), await anext(others)]
        grown += [await anext(ours), await anext(others)]
        assert len(grown[2]) > len(grown[0]), "it streams"
        page.stop(TAB)
        *_, last = [html async for html in ours]
        assert "stopped" in last
        while scheduler.running > 1:
            await asyncio.sleep(0.01)
        page.leave(OTHER)
        await others.aclose()
        while scheduler.running:
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_new_generation_ends_the_one_under_way(page, scheduler, monkeypatch):
    monkeypatch.setattr("slm.serving.demo._MOST_TOKENS", 10**6)
    endless = [*OPTIONS[:6], 10**6, 10**6]

    async def run():
        old, new = (
            page.generate(TAB, "Tom", "", 1, *endless, seed, "rebuild", "") for seed in (1, 2)
        )
        assert "seed 1" in await anext(old)
        assert "seed 2" in await anext(new)
        assert [html async for html in old] == [], "it would hide the new story"
        while scheduler.running != 1:
            await asyncio.sleep(0.01)
        await new.aclose()

    asyncio.run(run())


def test_a_tab_that_closes_frees_its_rows(page, scheduler, monkeypatch):
    monkeypatch.setattr("slm.serving.demo._MOST_TOKENS", 10**6)

    async def run():
        events = page.generate(TAB, "Tom", "", 2, *OPTIONS[:6], 10**6, 10**6, *OPTIONS[8:])
        await anext(events)
        await events.aclose()
        while scheduler.running or scheduler.waiting:
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_of_tabs_that_never_close_the_oldest_are_forgotten(page):
    for number in range(3):
        generate(page, "Tom", "", 1, *OPTIONS, tab=SimpleNamespace(session_hash=str(number)))
    assert list(page._jobs) == ["2"]


def test_a_full_queue_is_explained(page, scheduler):
    endless = SamplingOptions(max_new_tokens=10**6, min_new_tokens=10**6)
    jobs = scheduler.submit(
        [Story(StoryRequest("A", endless), TOKENIZER) for _ in range(6)], lambda *event: None
    )
    with pytest.raises(gr.Error, match="waiting"):
        generate(page, "Tom", "", 1, *OPTIONS)
    scheduler.cancel(jobs)


def test_a_click_shows_the_attention_of_a_token(page, model):
    before = generate(page, "Tom", "", 1, *OPTIONS)[-1]
    html = page.attend(TAB, SimpleNamespace(sample="0", token="6"))
    assert html.count('class="t chosen"') == 1
    seen = re.findall(r"--a:([\d.]+)", html)
    assert len(seen) == 5, "the tokens before it, without end-of-text"
    assert max(map(float, seen)) == 1
    weights = page._weights([256, *b"Tom had"])
    assert weights[0] == 0
    assert 0 < sum(weights) < 1
    assert page.attend(TAB, SimpleNamespace(sample=0, token=-1)) == before
    for event in ({"sample": 9, "token": 1}, {"sample": "x", "token": 1}, {"sample": 0}, {}):
        assert page.attend(TAB, SimpleNamespace(**event)) == gr.skip()
    assert page.attend(OTHER, SimpleNamespace(sample=0, token=1)) == gr.skip()


def test_attention_beyond_the_context_is_zero(page):
    weights = page._weights([256, *b"Once upon a time there was a little cat."])
    assert len(weights) == 41
    assert weights[:10] == [0.0] * 10
    assert all(weight > 0 for weight in weights[10:])


def make_job(prompt, new):
    """A job that is complete."""
    story = Story(StoryRequest(prompt, SamplingOptions(log_probs=2)), TOKENIZER)
    sequence = story.continuation
    for byte in new:
        sequence.log_probs.append(-0.5)
        sequence.alternatives.append([(byte, -0.5), (256, -1.0)])
        sequence.tokens.append(byte)
        story.advance()
    sequence.ended = "end of text"
    story.advance()
    return Job(story, lambda *event: None)


def test_nothing_of_a_prompt_or_a_story_is_run():
    evil = "<script>alert(1)</script>${alert(2)}{{value}}`\\\"'&amp;\x1b"
    html = stories_html([make_job(evil, evil.encode())], TOKENIZER)
    tags = set(re.findall(r"</?(\w+)", html))
    assert tags == {"p", "div", "article", "span"}
    for sign in ("${", "{{", "`", "\\", "\x1b"):
        assert sign not in html
    shown = evil.replace("\x1b", "\\x1b")
    assert shown + shown in text_of(html)


def test_tokens_that_are_parts_of_a_character_are_shown_as_one():
    html = stories_html([make_job("é", "🙂!".encode())], TOKENIZER)
    assert re.findall(r">([^<>]+)</span>", html) == ["é", "🙂", "!"]


def test_a_token_has_its_probability_and_what_else_was_likely():
    html = stories_html([make_job("", b"a")], TOKENIZER)
    assert "--p:0.61" in html
    assert "▸  60.7% a\n   36.8% (the end)" in unescape(html)
    shaded = stories_html([make_job("", b"ab")], TOKENIZER, Attention(0, 2, [0.0, 0.5]))
    assert "--a:1.00" in shaded


def test_of_a_long_prompt_the_end_is_shown():
    html = stories_html([make_job("x" * 5000 + "y", b"z")], TOKENIZER)
    assert "… " in html
    assert html.count("x</span>") == 199


def test_the_page_can_be_built(scheduler, model):
    async def make(takes_words):  # Gradio makes an event loop, and leaves it open, if there is none
        return make_demo(scheduler, model, takes_words, "version_0")

    for takes_words in (False, True):
        demo = asyncio.run(make(takes_words))
        (words,) = [
            block for block in demo.blocks.values()
            if getattr(block, "label", "") == "Words that it is to contain"
        ]  # fmt: skip
        assert words.visible == takes_words
        (start,) = [
            event for event in demo.fns.values() if event.fn and event.fn.__name__ == "generate"
        ]
        assert start.trigger_mode == "multiple", "else Generate does nothing during a generation"


# ---- the commands -------------------------------------------------------------------------------


def wait_for_page(process):
    """The address, once the page is there."""
    while "Page " not in (line := process.stderr.readline()):
        assert line, "it has not started"
    return re.search(r"http://[\d.:]+", line)[0]


def answers_and_ends(command, folder):
    env = os.environ | {"OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9"}  # none is there
    with subprocess.Popen(
        command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            page = httpx.get(wait_for_page(process), timeout=30)
            assert page.status_code == 200
            assert "How does the story begin?" in page.text
            assert "googleapis" not in page.text
            files = {"files": ("a.txt", b"Nothing is to be uploaded.")}
            address = str(page.url).rstrip("/")
            upload = httpx.post(f"{address}/gradio_api/upload", files=files)
            assert upload.status_code == 413
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert out == ""


def test_the_command_shows_the_page_until_it_is_stopped(trained):
    command = [sys.executable, "-m", "slm.cli", "demo", "--port", "0", "--ckpt_path"]
    answers_and_ends([*command, str(checkpoint("best", root=trained))], trained)


def test_a_space_is_complete(slm, trained, workplace):
    ckpt = checkpoint("best", root=trained)
    result = slm("export", "--to", "space", "--ckpt_path", ckpt, "--out", "space")
    assert result.status == 0, result.err
    folder = workplace / "space"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "app.py", "model.ckpt", "requirements.txt", "slm",
    }  # fmt: skip
    assert f"sdk_version: {gr.__version__}" in (folder / "README.md").read_text()
    needed = (folder / "requirements.txt").read_text()
    assert {"torch", "tiktoken", "gradio"} <= set(re.findall(r"^[\w-]+", needed, re.MULTILINE))
    assert str(trained).encode() not in (folder / "model.ckpt").read_bytes()
    generated = [slm("predict", "--ckpt_path", path, "--prompt", "A").out
            for path in (ckpt, folder / "model.ckpt")]  # fmt: skip
    assert generated[0] == generated[1]
    app = (folder / "app.py").read_text().replace('"7860"', '"0"').replace("0.0.0.0", "127.0.0.1")
    (folder / "app.py").write_text(app)
    alone = workplace.parent / f"{workplace.name}-alone"
    shutil.move(folder, alone)
    answers_and_ends([sys.executable, "app.py"], alone)


def test_without_the_extra_they_say_how_to_install_it(slm, trained, monkeypatch):
    words = ("--ckpt_path", checkpoint("best", root=trained))
    monkeypatch.delitem(sys.modules, "slm.serving.demo")
    monkeypatch.setitem(sys.modules, "gradio", None)
    refuse(slm("demo", *words), "gradio", "pip install 'slm-stories[demo]'")
