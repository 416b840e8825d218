"""From tokens to text: pieces, stop texts, many stories side by side."""

import pytest
import torch

from slm.data.tokenizer import Tokenizer
from slm.generation import SamplingOptions
from slm.generation.storyteller import Story, StoryRequest, Storyteller
from slm.model import GPT, GPTConfig

TOKENIZER = Tokenizer("bpe", {bytes([byte]): byte for byte in range(256)}, 257)
END = TOKENIZER.end_of_text


@pytest.fixture
def storyteller():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=1, n_head=2, n_embd=16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Storyteller(model, TOKENIZER)


def read(story, text):
    """Lets a story get these bytes as tokens, one at a time; the pieces it gives."""
    pieces = []
    for byte in text.encode() if isinstance(text, str) else text:
        if story.ended:
            break
        story.continuation.tokens.append(byte)
        pieces.append(story.advance())
    return pieces


def test_pieces_are_whole_characters():
    story = Story(StoryRequest("A", SamplingOptions()), TOKENIZER)
    pieces = read(story, "é🙂!")
    assert pieces == ["", "é", "", "", "", "🙂", "!"]
    assert story.text == "é🙂!"


def test_a_character_left_open_is_marked_at_the_end():
    story = Story(StoryRequest("A", SamplingOptions()), TOKENIZER)
    assert read(story, "é".encode()[:1]) == [""]
    story.continuation.ended = "max_new_tokens"
    assert story.advance() == "\ufffd"


def test_a_story_ends_in_front_of_a_stop_text_and_says_nothing_of_it():
    story = Story(StoryRequest("A", SamplingOptions(stop=("The end", "\n\n"))), TOKENIZER)
    pieces = read(story, "One.\nThe The end. And more")
    assert "".join(pieces) == story.text == "One.\nThe "
    assert story.ended == "stop"
    assert pieces[:6] == ["O", "n", "e", ".", "", "\n"], "what may be a stop text waits"


def test_what_waited_for_a_stop_text_comes_when_the_story_ends_without_it():
    story = Story(StoryRequest("A", SamplingOptions(stop=("The end",))), TOKENIZER)
    read(story, "Oh. The")
    assert story.text == "Oh. "
    story.continuation.ended = "end of text"
    assert story.advance() == "The"
    assert story.seconds > 0


def test_no_stop_text_ends_a_story_before_its_minimum():
    story = Story(StoryRequest("A", SamplingOptions(stop=("b",), min_new_tokens=3)), TOKENIZER)
    read(story, "abab")
    assert story.text == "aba"


def test_one_story_comes_in_pieces_that_make_the_whole(storyteller):
    request = StoryRequest("Once", SamplingOptions(max_new_tokens=40))
    assert "".join(storyteller.generate(request)) == "".join(storyteller.generate(request)) != ""


def test_many_stories_equal_those_generated_alone_and_begin_in_order(storyteller):
    requests = [
        StoryRequest(
            prompt, SamplingOptions(temperature=1.0, max_new_tokens=30, stop=("a",), seed=n)
        )
        for n, prompt in enumerate(["Tom", "A longer prompt", "", "Lily went", "x" * 50] * 2)
    ]
    begun, texts = [], {}
    for story, piece in storyteller.generate_all(requests, batch_size=3):
        if story.request not in texts:
            begun.append(story.request)
        texts[story.request] = texts.get(story.request, "") + piece
    assert begun == requests
    for request in requests:
        assert texts[request] == "".join(storyteller.generate(request))
