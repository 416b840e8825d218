"""Requests in front of stories: which words, where they are stored, and that they cost no loss."""

import numpy as np
import pytest
import torch
from conftest import make_stories, refuse, write_stories
from hypothesis import given
from hypothesis import strategies as st

from slm.data.batches import IGNORED, EpochWindows, RandomWindows, TokenFile
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared
from slm.data.requests import LONGEST, request_mask, request_words, story_ends, with_request
from slm.data.statistics import count_split, examples
from slm.data.tokenizer import Tokenizer
from slm.data.verification import verify
from slm.model import GPT, GPTConfig
from slm.training.loss import NextTokenLoss

BYTES = Tokenizer("bpe", {bytes([byte]): byte for byte in range(256)}, 257)
END = BYTES.end_of_text
STORY = "Once upon a time, Lily saw a brave dragon. It wasn't angry, it ate the cake. Yes, cake!"


def test_the_words_are_content_words_of_the_story_and_a_function_of_it():
    words = request_words(STORY)
    assert words == request_words(STORY)
    assert 2 <= len(words) <= 4
    assert set(words) <= {"brave", "dragon", "angry", "ate", "cake"}
    assert request_words("Lily and Tom had one thing.") == []
    assert request_words("A dragon.") == [], "one word makes no request"


def test_numbers_orders_and_stories_with_a_request_vary():
    stories = [f"{STORY} {n}" for n in range(400)]
    lengths = [len(request_words(story)) for story in stories]
    assert {2, 3, 4} == set(lengths)
    asked = [len(with_request(story)) == 3 for story in stories]
    assert 150 < sum(asked) < 250
    firsts = {request_words(story)[0] for story in stories}
    assert len(firsts) == 5


@given(st.text())
def test_any_text_gets_a_request_of_bounded_length_or_none(text):
    *request, story = with_request(text)
    assert story == text
    if request:
        assert request[0] == ""
        assert len(BYTES.encode_stories(request)) <= LONGEST
        assert all(word in text for word in request[1].split())


def prepared(tmp_path, **options):
    stories = [
        story.replace("It was happy", "It was happy and brave") for story in make_stories(90)
    ]
    source = write_stories(tmp_path / "stories.jsonl", ["", *stories, stories[5], " "])
    corpus = Corpus(
        str(source), str(tmp_path / "data"), "bpe", 300, validation_share=0.2, **options
    )
    folder = ensure_prepared(corpus)
    return stories, folder, verify(folder)


def parts(ids, end):
    """What stands between end-of-texts."""
    return np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]


@pytest.mark.parametrize("unique", [False, True])
def test_prepared_data_have_requests_in_front_of_training_stories(tmp_path, unique):
    from slm.data.cleaning import Cleaning

    options = {"request": "words", "clean": Cleaning(drop_duplicates=unique)}
    stories, folder, manifest = prepared(tmp_path, **options)
    assert folder.name.endswith("-words")
    tokenizer = manifest.make_tokenizer(folder)
    found = []
    for split in ("train", "validation"):
        ids = np.fromfile(Manifest.path(folder, split), manifest.dtype)
        texts = [tokenizer.decode(part) for part in parts(ids, tokenizer.end_of_text)]
        while texts:
            if texts[0] == "":
                assert split == "train"
                assert with_request(texts[2]) == texts[:3]
                del texts[:2]
            else:
                assert split == "validation" or len(with_request(texts[0])) == 1
            found.append(texts.pop(0))
    assert sorted(found) == sorted({*stories} if unique else [*stories, stories[5]])
    total = sum(facts.stories for facts in manifest.splits.values())
    assert total == len(found)
    counted = count_split(folder, manifest, "train")
    assert len(counted.ends) == manifest.splits["train"].stories
    shown = examples(folder, manifest, "train", counted.ends, 1, 999)
    assert {story.partition("]\n")[2] or story for story in shown} <= {*stories}
    assert any(story.startswith("[requested: ") for story in shown)


def test_without_the_option_data_are_as_ever(tmp_path):
    _, folder, manifest = prepared(tmp_path)
    assert "request" not in manifest.reading
    assert manifest.splits["train"].stories == count_split(folder, manifest, "train").ends.size
    ids = np.fromfile(Manifest.path(folder, "train"), manifest.dtype)
    empty = [part for part in parts(ids, 299) if len(part) == 1]
    assert sum(facts.stories for facts in manifest.splits.values()) == 93
    assert len(empty) == 1, "the empty story is kept; the other is white space"


def requested_plainly(ids):
    """Whether each id belongs to a request, one after the other."""
    flags, previous, inside = [], END, False
    for id_ in ids:
        announces = id_ == END == previous
        flags.append(announces or inside)
        inside = announces or (inside and id_ != END)
        previous = id_
    return flags


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    """Stories of which about half follow a request, the first one, too."""
    stories = [f"{STORY[: 40 + 7 * (n % 9)]} {n}" for n in range(60)]
    texts = [text for story in stories for text in with_request(story)]
    first = next(n for n, text in enumerate(texts) if text == "")
    ids = BYTES.encode_stories(texts[first:]).astype("<u2")
    path = tmp_path_factory.mktemp("tokens") / "train.bin"
    ids.tofile(path)
    return TokenFile(path, np.dtype("<u2")), ids


@pytest.mark.parametrize("kind", [RandomWindows, EpochWindows])
def test_the_targets_of_requests_are_ignored_wherever_a_window_begins(token_file, kind):
    file, ids = token_file
    flags = np.array(requested_plainly(ids))
    assert 0.1 < flags.mean() < 0.4
    windows = kind(file, 24, 8, 3, request_end=END)
    plain = kind(file, 24, 8, 3)
    seen = set()
    for index in range(60):
        starts = windows._starts(index * 8, 8)
        inputs, targets = windows[index]
        assert torch.equal(inputs, plain[index][0])
        for start, row in zip(starts, targets.tolist(), strict=True):
            span = slice(start + 1, start + 25)
            expected = np.where(flags[span], IGNORED, ids[span].astype(int))
            assert row == expected.tolist()
            seen.add(bool(flags[start]))
    assert seen == {False, True}, "some windows begin within a request"


def test_a_mask_at_the_beginning_of_a_file(token_file):
    _, ids = token_file
    window = np.concatenate([np.full(LONGEST, ids[0]), ids[:200]])[None]
    assert request_mask(window, END)[0, LONGEST:].tolist() == requested_plainly(ids[:200])


def test_stories_are_counted_without_their_requests(token_file):
    _, ids = token_file
    ends = np.flatnonzero(ids == END)
    expected = [n for n in ends if not requested_plainly(ids)[n]]
    assert story_ends(ends).tolist() == expected


@pytest.mark.parametrize("compiled", [False, True])
def test_ignored_targets_add_nothing_to_loss_and_gradients(compiled):
    """As torch's cross-entropy with ignore_index, divided by all positions."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=16, dropout=0.0))
    inputs = torch.randint(50, (3, 8))
    targets = torch.randint(50, (3, 8))
    targets[0, :5] = targets[2] = IGNORED
    loss = NextTokenLoss(compile=compiled)(model, inputs, targets)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    expected = (
        torch.nn.functional.cross_entropy(
            model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        / targets.numel()
    )
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_a_prompt_with_words_has_the_form_of_the_data():
    *request, story = ["", " dragon cake", "Once upon"]
    stored = [END, *BYTES.encode_stories([*request, story])]
    assert BYTES.encode_prompt("Once upon", ["dragon", "cake"]) == stored[:-1]
    assert BYTES.encode_prompt("Once") == [END, *b"Once"]


def test_another_kind_of_request_is_refused(slm):
    refuse(slm("prepare", "--data.source", "stories.txt", "--data.request", "plots"), "request")
