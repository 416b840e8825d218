"""`slm predict` without a prompt, on a terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from conftest import checkpoint, refuse

from slm.commands.predict.dialogue import Dialogue
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.storyteller import Storyteller
from slm.model import GPT, GPTConfig
from slm.printable import printable

PASTED = "A cat had a ball.\nIt was red.\n" * 350
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Terminal:
    """A terminal with the program in it."""

    def __init__(self, master):
        self._master = master
        self.text = ""

    def type(self, text):
        data = text.encode()
        for start in range(0, len(data), 512):
            os.write(self._master, data[start : start + 512])

    def expect(self, pattern, seconds=40):
        """Waits for a pattern in what comes next; returns what came up to its end."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text, re.DOTALL)):
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, (pattern, self.text)
            self.text += os.read(self._master, 65536).decode(errors="replace")
            self.text = re.sub("\x1b\\[\\?2004[hl]\r?", "", self.text).replace("\r\n", "\n")
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before


@contextmanager
def predicting(trained, *words):
    """The program, in a terminal of its own, with which Ctrl-C reaches it."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "slm.cli", "predict", "--ckpt_path"]
    command += [str(checkpoint("best", root=trained)), "--trainer.accelerator", "cpu", *words]
    leader = [sys.executable, "-c", f"import pty; pty.spawn({command!r})"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    process = subprocess.Popen(
        leader, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(master), process
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_stories_options_interruptions_and_history_in_one_process(slm, trained):
    with predicting(trained) as (terminal, process):
        terminal.expect("/help lists commands.*> ")
        terminal.type("A cat\n")
        first = terminal.expect(r"\[seed 1337, \d+ tokens[^\n]*\]\n> ")
        words = ("--ckpt_path", checkpoint("best", root=trained), "--trainer.accelerator", "cpu")
        alone = slm("predict", *words, "--prompt", "A cat").out
        assert alone in first, "the same story as without a terminal"

        terminal.type("/temperature 0\n")
        terminal.expect(r"temperature: 0.0\n> ")
        terminal.type("/again\n")
        again = terminal.expect(r"\[seed 1338, [^\n]*\]\n> ")
        assert slm("predict", *words, "--prompt", "A cat", "--temperature", "0").out in again

        terminal.type("/max_new_tokens 1000000\n/min_new_tokens 1000000\n")
        terminal.expect(r"min_new_tokens: 1000000\n> ")
        terminal.type("\n")
        terminal.expect("Once upon a time.")
        terminal.type(CTRL_C)
        terminal.expect(r"\[seed 1339, \d+ tokens, interrupted\]\n> ")

        terminal.type(UP * 4)
        terminal.expect("temperature 0")
        terminal.type(CTRL_C)
        terminal.expect("\n> ")
        terminal.type(CTRL_D)
        assert process.wait(20) == 0


def test_a_long_text_of_many_lines_can_be_pasted(trained):
    with predicting(trained, "--max_new_tokens", "5") as (terminal, _):
        terminal.expect("> ")
        terminal.type(f"\x1b[200~{PASTED}\x1b[201~\n")
        shown = terminal.expect(r"\[of [\d,]+ tokens the model sees the last 16\].*\n> ", 60)
        assert "… " in shown
        assert shown.count("[seed") == 1, "it is one prompt"
        terminal.type("/again\n")
        terminal.expect(r"\[seed 1338, .*\n> ")


def test_a_pipe_gets_the_classic_story_as_ever(trained):
    command = [sys.executable, "-m", "slm.cli", "predict", "--ckpt_path"]
    command += [str(checkpoint("best", root=trained)), "--trainer.accelerator", "cpu"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Once upon a time")
    assert ">" not in done.stdout


# ---- without a terminal ---------------------------------------------------------------------


@pytest.fixture
def dialogue():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=1, n_head=2, n_embd=16))
    tokenizer = Tokenizer("bpe", {bytes([byte]): byte for byte in range(256)}, 257)
    options = SamplingOptions(max_new_tokens=8)
    return Dialogue(Storyteller(model, tokenizer), options, [], takes_words=True)


def test_a_command_without_a_value_shows_it(dialogue, capsys):
    for line in ("/top_p", "/seed", "/words", "/words brave dragon", "/top_p 0.5", "/top_k null"):
        dialogue._take(line)
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "top_p: null", "seed: 1337", "words: none", "words: brave, dragon", "top_p: 0.5",
        "top_k: null",
    ]  # fmt: skip
    dialogue._take("/help")
    assert "/past_context" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "found", "remedy"),
    [
        ("/temprature 1", "there is no command /temprature", "/temperature"),
        ("/temperature hot", "--temperature is hot", "/temperature 0.8"),
        ("/top_p 3", "top_p is 3.0", "/top_p null"),
        ("/", "there is no command /", "/help"),
    ],
)
def test_a_mistake_is_explained_and_changes_nothing(dialogue, line, found, remedy):
    before = dialogue._options
    with pytest.raises(UserError) as error:
        dialogue._take(line)
    assert found in error.value.found
    assert error.value.remedy == remedy
    assert dialogue._options == before


def test_each_story_has_the_next_seed_and_control_characters_do_nothing(dialogue, capsys):
    dialogue._take("Tom\x1b[2J")
    dialogue._take("/again")
    out, err = capsys.readouterr()
    assert out.count(printable("Tom\x1b[2J")) == 2
    assert "\x1b" not in out
    assert "seed 1337, " in err
    assert "seed 1338, " in err


def test_words_need_a_model_that_knows_them(dialogue, slm, trained):
    dialogue._takes_words = False
    with pytest.raises(UserError, match="without requests"):
        dialogue._take("/words dragon")
    words = ("--ckpt_path", checkpoint("best", root=trained), "--words", "dragon, cake")
    refuse(slm("predict", *words), "trained on stories without requests", "--data.request words")
