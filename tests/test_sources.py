"""Where stories come from: files of every kind, folders, the hub's layout, built-in."""

import csv
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_stories

from slm.data import hub
from slm.data.readers import read_stories
from slm.data.sources import BuiltinSource, open_source
from slm.errors import UserError

STORIES = [
    'One day, a "cat", a dog.',
    "Two lines.\nThe second — with ünïcode 🐢.",
    "",
    "The end.",
]


def write(path, stories, column="text"):
    """Writes stories in the format that the path's ending names."""
    if path.suffix == ".txt":
        path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"id": 1, column: story}) for story in stories]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["id", column], *([1, story] for story in stories)])
    else:
        pyarrow.parquet.write_table(
            pyarrow.table({"id": [1] * len(stories), column: stories}), path
        )
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_stories(tmp_path, suffix):
    path = write(tmp_path / f"stories{suffix}", STORIES)
    assert [story.strip() for story in read_stories(path, "text")] == STORIES


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_can_be_named_and_a_missing_one_is_explained(tmp_path, suffix):
    path = write(tmp_path / f"stories{suffix}", STORIES, column="story")
    assert list(read_stories(path, "story")) == STORIES
    with pytest.raises(UserError, match="no column 'text' among id, story") as error:
        list(read_stories(path, "text"))
    assert "--data.text_column" in error.value.remedy


def test_a_separator_across_a_read_boundary_is_seen(tmp_path):
    long = ["a" * (2**20 - 5), "b" * 2**20, "c"]
    path = write(tmp_path / "long.txt", long)
    assert [story.strip() for story in read_stories(path, "text")] == long


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbfOnce.")
    assert list(read_stories(path, "text")) == ["Once."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("list.jsonl", b"[1, 2]\n", "no column"),
        ("number.jsonl", b'{"text": 5}\n', "holds int"),
        ("fake.parquet", b"not a parquet file", "parquet"),
        ("stories.docx", b"PK", "ends in .docx"),
    ],
)
def test_a_bad_file_is_explained_with_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_stories(path, "text"))
    assert name in error.value.found


def split(source):
    return {name: [s.strip() for s in source.stories(name)] for name in ("train", "validation")}


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
        write(tmp_path / name, stories)
    (tmp_path / "README.txt").write_text("not a story")
    (tmp_path / "test.txt").write_text("left alone")
    source = open_source(str(tmp_path), "text", 0.5)
    assert split(source) == {"train": STORIES, "validation": ["held out"]}


def test_without_a_validation_file_a_share_is_held_out_by_the_text_alone(tmp_path):
    stories = sorted(set(make_stories(2000)))
    halves = split(open_source(str(write(tmp_path / "all.txt", stories)), "text", 0.3))
    assert sorted(halves["train"] + halves["validation"]) == stories
    assert 0.25 < len(halves["validation"]) / len(stories) < 0.35
    backwards = split(open_source(str(write(tmp_path / "b.txt", stories[::-1])), "text", 0.3))
    assert set(backwards["validation"]) == set(halves["validation"])


def test_missing_and_empty_places_are_explained(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"), "text", 0.1).revision()
    with pytest.raises(UserError, match="holds no training file"):
        open_source(str(tmp_path), "text", 0.1).revision()


def test_a_changed_file_is_noticed(tmp_path):
    path = write(tmp_path / "a.txt", STORIES)
    source = open_source(str(path), "text", 0.1)
    revision = source.revision()
    assert source.unchanged_since(revision)
    write(path, [*STORIES, "more"])
    assert not source.unchanged_since(revision)
    path.unlink()
    assert source.unchanged_since(revision), "prepared data outlive their source"


def test_builtin_stories_are_split_and_complete():
    source = BuiltinSource(0.1, count=500)
    halves = split(source)
    assert len(halves["train"]) + len(halves["validation"]) == 500
    assert 20 < len(halves["validation"]) < 90
    assert not set(halves["train"]) & set(halves["validation"])


# ---- the hub ---------------------------------------------------------------------------


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A local folder laid out as a repository of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "TinyStories"
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        stories = STORIES[2 * number : 2 * number + 2]
        write(folder / "data" / f"train-0000{number}-of-00002.parquet", stories)
    write(folder / "data" / "validation-00000-of-00001.parquet", ["held out"])
    return folder


def test_the_hub_path_reads_a_repository(hub_folder):
    source = open_source(f"hub:{hub_folder}", "text", 0.5)
    assert source.name == "TinyStories"
    assert split(source) == {"train": STORIES, "validation": ["held out"]}
    assert source.revision() == source.revision() != ""


def test_a_repository_without_a_validation_split_is_split_by_hash(hub_folder):
    (hub_folder / "data" / "validation-00000-of-00001.parquet").unlink()
    halves = split(open_source(f"hub:{hub_folder}", "text", 0.5))
    assert sorted(halves["train"] + halves["validation"]) == sorted(STORIES)


def test_a_missing_column_of_the_hub_is_explained(hub_folder):
    with pytest.raises(UserError, match="no column 'story' among id, text"):
        list(open_source(f"hub:{hub_folder}", "story", 0.5).stories("train"))


def test_reading_the_hub_in_another_way_is_noticed_without_a_network(hub_folder):
    revision = open_source(f"hub:{hub_folder}", "text", 0.5).revision()
    assert open_source(f"hub:{hub_folder}", "text", 0.5).unchanged_since(revision)
    assert not open_source(f"hub:{hub_folder}", "id", 0.5).unchanged_since(revision)
    assert not open_source(f"hub:{hub_folder}", "text", 0.1).unchanged_since(revision)


def test_a_column_of_numbers_is_explained(hub_folder):
    with pytest.raises(UserError, match="column 'id' holds int"):
        list(open_source(f"hub:{hub_folder}", "id", 0.5).stories("train"))


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
        monkeypatch.delenv(name, raising=False)


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
