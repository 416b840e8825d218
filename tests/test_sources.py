"""Where stories come from: files of every kind, folders, the hub's layout, built-in."""

import os
import pickle
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import make_stories, write_stories

from slm.data import hub
from slm.data.source import describe_source, held_out
from slm.data.sources import BuiltinSource, open_source
from slm.errors import UserError

STORIES = [
    'One day, a "cat", a dog.',
    "Two lines.\nThe second — with ünïcode 🐢.",
    "",
    "The end.",
]


def split(source, share=0.5):
    """The stories of each split, stripped."""
    texts = {"train": [], "validation": []}
    for piece in source.pieces(1 << 20):
        for story in piece.stories():
            drawn = "validation" if held_out(story, share) else "train"
            texts[piece.split or drawn].append(story.strip())
    return texts


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train.txt", "validation.txt"),
        ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train/a.jsonl", "val/a.jsonl"),
    ],
)
def test_a_folder_is_split_by_names(tmp_path, train, validation):
    for name, stories in ((train, STORIES), (validation, ["held out"])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_stories(tmp_path / name, stories)
    (tmp_path / "README.txt").write_text("not a story")
    (tmp_path / "test.txt").write_text("left alone")
    source = open_source(str(tmp_path))
    assert split(source) == {"train": STORIES, "validation": ["held out"]}


def test_without_a_validation_file_a_share_is_held_out_by_the_text_alone(tmp_path):
    stories = sorted(set(make_stories(2000)))
    halves = split(open_source(str(write_stories(tmp_path / "all.txt", stories))), 0.3)
    assert sorted(halves["train"] + halves["validation"]) == stories
    assert 0.25 < len(halves["validation"]) / len(stories) < 0.35
    backwards = split(open_source(str(write_stories(tmp_path / "b.txt", stories[::-1]))), 0.3)
    assert set(backwards["validation"]) == set(halves["validation"])


def test_the_share_is_met_by_stories_that_hardly_differ():
    for text in ("Story number {} about a cat called Tom{}.", "{}", "a{}" * 40):
        stories = [text.format(n, n, *[n] * 40) for n in range(10_000)]
        held = sum(held_out(story, 0.02) for story in stories)
        assert 200 - 5 * 14 < held < 200 + 5 * 14, "mean 200, deviation 14"
    assert not held_out("", 0.99)
    assert not held_out(" \n", 0.99)


def test_missing_and_empty_places_are_explained(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(tmp_path / "nowhere")).revision()
    with pytest.raises(UserError, match="has no training file"):
        open_source(str(tmp_path)).revision()


def test_a_changed_file_is_noticed(tmp_path):
    path = write_stories(tmp_path / "a.txt", STORIES)
    source = open_source(str(path))
    revision = source.revision()
    assert source.unchanged_since(revision)
    write_stories(path, [*STORIES, "more"])
    assert not source.unchanged_since(revision)
    path.unlink()
    assert source.unchanged_since(revision), "prepared data outlive their source"


def test_builtin_stories_are_split_and_complete():
    source = BuiltinSource(count=500)
    halves = split(source, 0.1)
    assert len(halves["train"]) + len(halves["validation"]) == 500
    assert 20 < len(halves["validation"]) < 90
    assert not set(halves["train"]) & set(halves["validation"])


# ---- patterns and lists ----------------------------------------------------------------


def test_a_pattern_takes_what_it_matches(tmp_path):
    for name in ("books/a.txt", "books/b.txt", "books/valid.txt", "books/c.csv", "other/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_stories(tmp_path / name, [name])
    source = open_source(str(tmp_path / "books" / "*.txt"))
    assert split(source) == {
        "train": ["books/a.txt", "books/b.txt"],
        "validation": ["books/valid.txt"],
    }
    assert source.name == "books"
    deep = open_source(str(tmp_path / "**" / "[ab].txt"))
    assert sorted(split(deep, 0.0)["train"]) == ["books/a.txt", "books/b.txt"]
    with pytest.raises(UserError, match="has no training file; 0 for validation"):
        open_source(str(tmp_path / "*.jsonl")).revision()


def test_small_files_are_read_together_and_large_ones_apart(tmp_path):
    for n in range(30):
        write_stories(tmp_path / f"{n:02}.txt", [f"story {n}"])
    write_stories(tmp_path / "09-large.txt", ["long " * 1000, "longer " * 1000])
    for n in range(5):
        write_stories(tmp_path / f"valid-{n}.txt", [f"held {n}"])
    source = open_source(str(tmp_path))
    pieces = source.pieces(2000)
    assert len(pieces) < 12
    whole = split(source)
    texts = {"train": [], "validation": []}
    for piece in pieces:
        texts[piece.split] += [story.strip() for story in piece.stories()]
    assert texts == whole
    assert len(texts["train"]) == 32
    assert len({piece.label for piece in pieces}) == len(pieces)
    assert sum(p.weight for p in pieces) == sum(f.stat().st_size for f in tmp_path.iterdir())


@pytest.mark.parametrize("depth", ["", "a", "a/b/c"])
def test_a_deep_pattern_notices_a_change(tmp_path, depth):
    (tmp_path / depth).mkdir(parents=True, exist_ok=True)
    path = write_stories(tmp_path / depth / "a.txt", ["a"])
    revision = open_source(str(tmp_path / "**" / "*.txt")).revision()
    assert open_source(str(tmp_path / "**" / "*.txt")).unchanged_since(revision)
    write_stories(path, ["b"])
    assert not open_source(str(tmp_path / "**" / "*.txt")).unchanged_since(revision)


def test_hidden_files_are_passed_over_and_what_is_left_out_is_said(tmp_path):
    for name in ("a.txt", ".b.txt", ".venv/c.txt", "valid.txt", "sub/d.jsonl", "test.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_stories(tmp_path / name, [name])
    (tmp_path / "config.json").write_text("{}")
    source = open_source(str(tmp_path))
    assert split(source) == {"train": ["a.txt", "sub/d.jsonl"], "validation": ["valid.txt"]}
    assert source.describe() == (
        "2 for training, 1 for validation, left out: config.json, test.txt"
    )
    joined = open_source([str(tmp_path), str(tmp_path / "a.txt"), "builtin"])
    assert joined.describe() == source.describe()


def test_json_files_are_read_where_there_are_no_others(tmp_path):
    for name in ("data00.json", "data01.json", ".hidden.txt", "readme.md"):
        write_stories(tmp_path / "stories.jsonl", [name]).rename(tmp_path / name)
    source = open_source(str(tmp_path))
    assert split(source, 0)["train"] == ["data00.json", "data01.json"]
    write_stories(tmp_path / "a.txt", ["a"])
    assert split(open_source(str(tmp_path)), 0)["train"] == ["a"]


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    name = os.fsdecode(b"b\xef.txt")
    write_stories(tmp_path / "a.txt", ["a"]).rename(tmp_path / name)
    source = open_source(str(tmp_path))
    assert split(source, 0)["train"] == ["a"]
    assert source.unchanged_since(source.revision())


@pytest.mark.parametrize("spec", ["", "  ", "hub:", ["builtin", ""]])
def test_a_source_without_a_name_is_explained(spec):
    with pytest.raises(UserError, match="names no source"):
        open_source(spec)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_to_itself_is_explained(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop"):
        open_source(str(tmp_path / "loop")).revision()


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    path = write_stories(tmp_path / "a[1].txt", ["one", "two"])
    assert sorted(split(open_source(str(path)), 0.0)["train"]) == ["one", "two"]


def test_a_pattern_notices_a_new_file_and_outlives_its_files(tmp_path):
    first = write_stories(tmp_path / "a.txt", ["a"])
    source = open_source(str(tmp_path / "*.txt"))
    revision = source.revision()
    second = write_stories(tmp_path / "b.txt", ["b"])
    assert not open_source(str(tmp_path / "*.txt")).unchanged_since(revision)
    first.unlink()
    second.unlink()
    assert open_source(str(tmp_path / "*.txt")).unchanged_since(revision)


def test_several_sources_are_read_one_after_the_other(tmp_path):
    (tmp_path / "with").mkdir()
    write_stories(tmp_path / "with" / "train.txt", ["t"])
    write_stories(tmp_path / "with" / "validation.jsonl", ["v"])
    alone = write_stories(tmp_path / "alone.txt", ["a", "b", "c", "d", "e", "f"])
    source = open_source([str(tmp_path / "with"), str(alone)])
    halves = split(source)
    assert halves["train"][0] == "t"
    assert halves["validation"][0] == "v"
    assert sorted(halves["train"][1:] + halves["validation"][1:]) == ["a", "b", "c", "d", "e", "f"]
    assert source.name == "with+alone"
    assert describe_source(source.spec) == f"{tmp_path / 'with'} + {alone}"
    revision = source.revision()
    assert source.unchanged_since(revision)
    write_stories(alone, ["other"])
    assert not open_source([str(tmp_path / "with"), str(alone)]).unchanged_since(revision)


def test_a_list_of_one_is_that_one_and_an_empty_list_is_explained(tmp_path):
    assert open_source(["builtin"]).spec == "builtin"
    with pytest.raises(UserError, match="at least one source"):
        open_source([])


# ---- the hub ---------------------------------------------------------------------------


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A local folder laid out as a repository of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "TinyStories"
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        stories = STORIES[2 * number : 2 * number + 2]
        write_stories(folder / "data" / f"train-0000{number}-of-00002.parquet", stories)
    write_stories(folder / "data" / "validation-00000-of-00001.parquet", ["held out"])
    return folder


def test_the_hub_path_reads_a_repository(hub_folder):
    source = open_source(f"hub:{hub_folder}")
    assert source.name == "TinyStories"
    assert split(source) == {"train": STORIES, "validation": ["held out"]}
    assert source.revision() == source.revision() != ""


def test_a_repository_without_a_validation_split_is_split_by_hash(hub_folder):
    (hub_folder / "data" / "validation-00000-of-00001.parquet").unlink()
    halves = split(open_source(f"hub:{hub_folder}"))
    assert sorted(halves["train"] + halves["validation"]) == sorted(STORIES)


def test_a_missing_column_of_the_hub_is_explained(hub_folder):
    with pytest.raises(UserError, match="no column 'story' among id, text"):
        open_source(f"hub:{hub_folder}", "story").pieces(1 << 20)


def test_a_template_over_the_hubs_columns(hub_folder):
    source = open_source(f"hub:{hub_folder}", "{id}. {text}")
    assert split(source)["validation"] == ["1. held out"]


def test_the_hub_is_cut_into_rows_that_travel_between_processes(hub_folder):
    source = open_source(f"hub:{hub_folder}")
    pieces = source.pieces(10)
    assert len(pieces) == 5
    again = [pickle.loads(pickle.dumps(piece)) for piece in pieces]
    assert [story for piece in again for story in piece.stories()] == [*STORIES, "held out"]
    assert len({piece.label for piece in pieces}) == 5


def test_the_hubs_prepared_data_stand_without_a_network(hub_folder):
    assert open_source("hub:some/where").unchanged_since("whatever")


def test_a_column_of_numbers_is_explained(hub_folder):
    with pytest.raises(UserError, match="column 'id' contains int"):
        list(open_source(f"hub:{hub_folder}", "id").pieces(1 << 20)[0].stories())


def test_being_told_to_stay_offline_is_obeyed_and_said(online_settings):
    online_settings.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.load("roneneldan/DoesNotExistAnywhere")


@pytest.fixture
def online_settings(monkeypatch):
    """Restores what `hub.load` sets when it finds itself offline."""
    import datasets
    import huggingface_hub.constants

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield monkeypatch
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.pop(name, None)  # monkeypatch would put back what `hub.load` has set


def refused_within(seconds):
    start = time.monotonic()
    with pytest.raises(UserError, match="did not answer within 3 seconds") as error:
        hub.load("roneneldan/DoesNotExistAnywhere")
    assert time.monotonic() - start < seconds
    assert "--data.source builtin" in error.value.remedy


def test_a_hub_that_refuses_connections_is_reported_soon(online_settings):
    online_settings.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused_within(8)


def test_a_hub_that_never_answers_is_given_up_in_time(online_settings):
    silence = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_HEAD(self):
            silence.wait(20)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online_settings.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        refused_within(8)
    finally:
        silence.set()
        server.shutdown()
        server.server_close()
