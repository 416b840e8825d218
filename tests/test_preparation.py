"""From stories to token files and their manifest."""

import hashlib
import json

import numpy as np
import pytest
from conftest import make_stories

from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared, folder_name, prepare
from slm.data.sources import open_source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError


@pytest.fixture
def source(stories_txt):
    return open_source(str(stories_txt), "text", 0.2)


def read_back(folder, split):
    """The stories of a prepared split, decoded."""
    manifest = Manifest.load(folder)
    tokenizer = manifest.make_tokenizer()
    ids = np.fromfile(Manifest.path(folder, split), manifest.dtype)
    assert ids[-1] == tokenizer.end_of_text
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    return [tokenizer.decode(story) for story in np.split(ids, ends + 1)[:-1]]


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("gpt2", 50257), ("bpe", 300)])
def test_every_story_is_there_closed_by_end_of_text(source, tmp_path, tokenizer, vocab_size):
    manifest = prepare(source, tokenizer, vocab_size, tmp_path / "out")
    for split in ("train", "validation"):
        expected = [story.strip() for story in source.stories(split)]
        assert read_back(tmp_path / "out", split) == expected
        facts = manifest.splits[split]
        data = (tmp_path / "out" / f"{split}.bin").read_bytes()
        assert facts.stories == len(expected)
        assert facts.bytes == sum(len(story.encode()) for story in expected)
        assert facts.tokens == len(data) // 2
        assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "train.bin",
        "validation.bin",
    ]


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("gpt2", 50257), ("bpe", 300)])
def test_twice_is_byte_identical(source, tmp_path, tokenizer, vocab_size):
    for name in ("one", "two"):
        prepare(source, tokenizer, vocab_size, tmp_path / name)
    for file in ("train.bin", "validation.bin", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_vocabulary_above_16_bits_takes_32(stories_txt, tmp_path):
    source = open_source(str(stories_txt), "text", 0.2)
    manifest = prepare(source, "bpe", 70_000, tmp_path / "out")
    assert manifest.dtype == np.dtype("<u4")
    assert read_back(tmp_path / "out", "train") == [s.strip() for s in source.stories("train")]


def test_a_spelt_out_separator_in_a_column_stays_text(tmp_path):
    text = "She wrote <|endoftext|> on the wall."
    rows = [json.dumps({"text": story}) for story in [text, *make_stories(50)]]
    (tmp_path / "s.jsonl").write_text("\n".join(rows))
    prepare(open_source(str(tmp_path / "s.jsonl"), "text", 0.3), "gpt2", 50257, tmp_path / "out")
    told = read_back(tmp_path / "out", "train") + read_back(tmp_path / "out", "validation")
    assert text in told


def test_blank_stories_are_left_out(tmp_path):
    stories = "\n<|endoftext|>\n".join(["", "   ", *make_stories(50), "\n\n"])
    (tmp_path / "s.txt").write_text(stories)
    manifest = prepare(
        open_source(str(tmp_path / "s.txt"), "text", 0.3), "gpt2", 50257, tmp_path / "out"
    )
    assert sum(facts.stories for facts in manifest.splits.values()) == 50


def test_prepared_data_are_used_again_and_need_no_source(source, stories_txt, tmp_path):
    folder = tmp_path / "out"
    first = ensure_prepared(source, "gpt2", 50257, folder)
    before = (folder / "train.bin").stat().st_mtime_ns
    stories_txt.unlink()
    assert ensure_prepared(source, "gpt2", 50257, folder) == first
    assert (folder / "train.bin").stat().st_mtime_ns == before


def test_a_changed_source_is_prepared_anew(source, stories_txt, tmp_path, capsys):
    folder = tmp_path / "out"
    first = ensure_prepared(source, "gpt2", 50257, folder)
    stories_txt.write_text("\n<|endoftext|>\n".join(make_stories(300, seed=1)))
    second = ensure_prepared(source, "gpt2", 50257, folder)
    assert second.splits["train"].stories > first.splits["train"].stories
    assert "has changed" in capsys.readouterr().err


def test_another_sources_data_are_not_overwritten(source, tmp_path):
    folder = tmp_path / "out"
    ensure_prepared(source, "gpt2", 50257, folder)
    before = (folder / "train.bin").read_bytes()
    (tmp_path / "other.txt").write_text("\n<|endoftext|>\n".join(make_stories(100, seed=2)))
    other = open_source(str(tmp_path / "other.txt"), "text", 0.2)
    with pytest.raises(UserError, match="holds data prepared from"):
        ensure_prepared(other, "gpt2", 50257, folder)
    assert (folder / "train.bin").read_bytes() == before


class InterruptionError(Exception):
    """Stands for whatever ends a preparation half-way."""


def test_an_interrupted_preparation_does_not_look_complete(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    encode, calls = Tokenizer.encode_batch, []

    def fail_in_the_second_split(self, texts):
        calls.append(texts)
        if len(calls) == 2:
            raise InterruptionError
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", fail_in_the_second_split)
    with pytest.raises(InterruptionError):
        prepare(source, "gpt2", 50257, folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        Manifest.load(folder)
    monkeypatch.undo()
    ensure_prepared(source, "gpt2", 50257, folder)
    assert Manifest.load(folder)


def test_data_that_were_there_survive_a_failed_preparation(source, stories_txt, tmp_path):
    folder = tmp_path / "out"
    first = ensure_prepared(source, "gpt2", 50257, folder)
    stories_txt.write_text("")
    with pytest.raises(UserError, match="holds no story"):
        ensure_prepared(source, "gpt2", 50257, folder)
    assert Manifest.load(folder) == first


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    rows = [json.dumps({"text": story}) for story in ["odd \ud83d one", *make_stories(50)]]
    (tmp_path / "s.jsonl").write_text("\n".join(rows))
    source = open_source(str(tmp_path / "s.jsonl"), "text", 0.3)
    prepare(source, "bpe", 300, tmp_path / "out")
    told = read_back(tmp_path / "out", "train") + read_back(tmp_path / "out", "validation")
    assert "odd ? one" in told


def test_a_full_disk_is_explained(source, tmp_path, monkeypatch):
    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match="No space left") as error:
        prepare(source, "gpt2", 50257, tmp_path / "out")
    assert "--data.root" in error.value.remedy
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("stories", ["", "\n\n<|endoftext|>\n  \n<|endoftext|>"])
def test_an_empty_corpus_is_explained(tmp_path, stories):
    (tmp_path / "empty.txt").write_text(stories)
    with pytest.raises(UserError, match=r"train split of .* holds no story"):
        prepare(
            open_source(str(tmp_path / "empty.txt"), "text", 0.2), "gpt2", 50257, tmp_path / "o"
        )
    assert not (tmp_path / "o" / "manifest.json").exists()


@pytest.fixture
def prepared(source, tmp_path):
    prepare(source, "gpt2", 50257, tmp_path / "out")
    return tmp_path / "out"


def test_a_manifest_survives_saving(prepared):
    manifest = Manifest.load(prepared)
    manifest.save(prepared)
    assert Manifest.load(prepared) == manifest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train.bin").unlink(), "train.bin does not exist"),
        (lambda f: (f / "train.bin").write_bytes(b"12"), r"train.bin has 2 bytes"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be understood"),
        (lambda f: (f / "manifest.json").write_text('{"format_version": 1}'), "cannot be und"),
        (lambda f: (f / "manifest.json").write_text('{"format_version": 0}'), "version 0"),
    ],
)
def test_damage_is_noticed_when_opening(prepared, damage, message):
    damage(prepared)
    with pytest.raises(UserError, match=message) as error:
        Manifest.load(prepared)
    assert "remove the folder" in error.value.remedy


def test_folder_names_tell_source_and_tokenizer():
    def name(spec, *tokenizer):
        return folder_name(open_source(spec, "text", 0.1), *tokenizer)

    assert name("hub:roneneldan/TinyStories", "gpt2", 50257) == "TinyStories-gpt2"
    assert name("builtin", "bpe", 2048) == "builtin-bpe2048"
    assert name("/a/My stories!.txt", "gpt2", 50257) == "My-stories-gpt2"
