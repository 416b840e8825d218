"""Stories out of files of every kind, whole and in pieces."""

import csv
import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
from conftest import write_stories
from hypothesis import example, given
from hypothesis import strategies as st

from slm.data import readers
from slm.data.columns import StoryText
from slm.data.readers import SUFFIXES, cut_file, read_stories
from slm.errors import UserError

STORIES = [
    'One day, a "cat", a dog.',
    "Two lines.\nThe second — with ünïcode 🐢.",
    "",
    "The end.",
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_stories(tmp_path, suffix):
    path = write_stories(tmp_path / f"stories{suffix}", STORIES)
    assert list(read_stories(path, "text")) == STORIES


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if ".txt" not in s])
def test_a_column_can_be_named_and_a_missing_one_is_explained(tmp_path, suffix):
    path = write_stories(tmp_path / f"stories{suffix}", STORIES, column="story")
    assert list(read_stories(path, "story")) == STORIES
    assert list(read_stories(path, "{id}: {story}")) == [f"1: {story}" for story in STORIES]
    with pytest.raises(UserError, match="no column 'text' among id, story") as error:
        list(read_stories(path, "text"))
    assert "--data.text_column" in error.value.remedy


def in_pieces(path, piece_bytes, split=None):
    pieces = cut_file(path, StoryText("text"), split, piece_bytes)
    return pieces, [story for piece in pieces for story in piece.stories()]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 13, 14, 40, 1000])
def test_pieces_of_any_size_give_each_story_once(tmp_path, suffix, piece_bytes):
    path = write_stories(tmp_path / f"s{suffix}", [*STORIES, *(f"Story {n}." for n in range(9))])
    pieces, stories = in_pieces(path, piece_bytes)
    assert stories == list(read_stories(path, "text"))
    assert len(pieces) == max(1, -(-path.stat().st_size // piece_bytes))
    assert sum(piece.weight for piece in pieces) == path.stat().st_size


SOUP = st.lists(
    st.sampled_from(
        [
            b"<|endoftext|>",
            b"<|endoftext|>\n",
            b"<|end",
            b"oftext|>",
            b"a",
            b" ",
            b"\r\n",
            b"\xc3\xa9",
        ]
    )
)


@given(SOUP, st.integers(1, 40), st.integers(1, 20))
@example([b"<|endoftext|>", b"a"], 1, 1)
@example([b"a", b"<|endoftext|>", b"<|endoftext|>", b"a"], 3, 2)
def test_separators_are_found_wherever_pieces_and_reads_are_cut(
    tmp_path_factory, soup, piece_bytes, block
):
    """Against a plain definition of what a .txt file holds."""
    path = tmp_path_factory.mktemp("soup") / "s.txt"
    path.write_bytes(b"".join(soup))
    first, *rest = b"".join(soup).decode().replace("\r\n", "\n").split("<|endoftext|>")
    middle, last = rest[:-1], rest[-1:]
    expected = [first] * bool(first.strip()) + middle + [s for s in last if s.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK", block)
        assert in_pieces(path, piece_bytes)[1] == [story.strip() for story in expected]


def test_parquet_is_cut_between_row_groups(tmp_path):
    stories = [f"Story {n}. " * 50 for n in range(100)]
    path = tmp_path / "s.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": stories}), path, row_group_size=10)
    pieces, found = in_pieces(path, 2000)
    assert found == stories
    assert 2 < len(pieces) <= 10


def test_what_cannot_be_cut_is_one_piece(tmp_path):
    for suffix in (".csv", ".txt.gz", ".jsonl.gz"):
        path = write_stories(tmp_path / f"s{suffix}", STORIES * 20)
        assert len(in_pieces(path, 10)[0]) == 1


def test_what_ends_in_json_is_read_as_json_lines(tmp_path):
    (tmp_path / "s.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert list(read_stories(tmp_path / "s.json", "text")) == ["a", "b"]


def test_a_byte_order_mark_is_dropped(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "s.txt").write_bytes(mark + b"Once.")
    (tmp_path / "s.jsonl").write_bytes(mark + b'{"text": "Once."}')
    (tmp_path / "s.csv").write_bytes(mark + b"text\nOnce.\n")
    for suffix in (".txt", ".jsonl", ".csv"):
        assert list(read_stories(tmp_path / f"s{suffix}", "text")) == ["Once."]


def test_line_ends_of_windows_are_line_breaks_in_text_and_left_in_columns(tmp_path):
    (tmp_path / "s.txt").write_bytes(b"One.\r\nTwo.\r\n<|endoftext|>\r\nThree.\r\n")
    assert list(read_stories(tmp_path / "s.txt", "text")) == ["One.\nTwo.", "Three."]
    (tmp_path / "s.jsonl").write_bytes(b'{"text": "One.\\r\\nTwo."}\r\n')
    (tmp_path / "s.csv").write_bytes(b'text\r\n"One.\r\nTwo."\r\n')
    for suffix in (".jsonl", ".csv"):
        assert list(read_stories(tmp_path / f"s{suffix}", "text")) == ["One.\r\nTwo."]


def test_a_mark_or_a_hard_space_at_the_ends_is_no_story(tmp_path):
    mark, space = b"\xef\xbb\xbf", "\u00a0".encode()
    end = b"<|endoftext|>"
    (tmp_path / "s.txt").write_bytes(mark + b"\n" + end + b"A." + end + space + end + space)
    assert list(read_stories(tmp_path / "s.txt", "text")) == ["A.", ""]


def test_empty_stories_between_separators_are_stories_and_at_the_ends_are_not(tmp_path):
    text = "\n<|endoftext|>\nA.\n<|endoftext|>\n \n<|endoftext|>\nB.\n<|endoftext|>\n"
    (tmp_path / "s.txt").write_text(text)
    assert list(read_stories(tmp_path / "s.txt", "text")) == ["A.", "", "B."]


def test_a_story_of_five_megabytes_is_read_whole_in_any_pieces(tmp_path):
    stories = ["short", "many words 🐢 " * 330_000 + "end", "c"]
    path = write_stories(tmp_path / "long.txt", stories)
    assert path.stat().st_size > 5_000_000
    for piece_bytes in (1 << 20, 1 << 23, sys.maxsize):
        assert in_pieces(path, piece_bytes)[1] == stories


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_a_story_beyond_all_measure_is_refused_before_it_fills_the_memory(
    tmp_path, suffix, monkeypatch
):
    monkeypatch.setattr(readers, "LONGEST_STORY", 1 << 20)
    path = write_stories(tmp_path / f"book{suffix}", ["x" * (3 << 20)])
    with pytest.raises(UserError, match="a story of more than 1 MB"):
        in_pieces(path, sys.maxsize)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"fine\ncaf\xe9", r"latin.txt, line 2 is not UTF-8 .*0xe9 at 8"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2 is not UTF-8"),
        ("latin.csv", b"text\ncaf\xe9", "not UTF-8"),
        ("quote.csv", b'text\none\n"two\nthree\n', "unexpected end of data"),
        ("latin2.csv", b"text\nfine\ncaf\xe9", "line 3 is not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("list.jsonl", b'{"text": "a"}\n[1]\n', "line 2 contains a JSON list"),
        ("array.json", b'[{"text": "a"},\n 5]', "object 2 contains a JSON int"),
        ("open.json", b'[{"text": "a"}', "after object 1: the array does not end"),
        ("after.json", b'[{"text": "a"}]\n[]', "after object 1: text after the end of the array"),
        ("comma.json", b'[{"text": "a"} {"text": "b"}]', "after object 1: no comma"),
        ("latin.json", b'[{"text": "caf\xe9"}]', "byte 14 of the file is not UTF-8"),
        ("deep.jsonl", b'{"text": "a"}\n{"text": ' + b"[" * 100_000, "line 2: maximum recursion"),
        ("deep.json", b'[{"text": ' + b"[" * 100_000, "deep.json: maximum recursion"),
        ("twice.jsonl", b'{"text": "a", "text": "b"}', "line 1: the key 'text' occurs twice"),
        ("twice.csv", b"text,text\na,b\n", "2 columns are called 'text'"),
        ("utf16.txt", "a b c".encode("utf-16"), "iconv -f UTF-16 -t"),
        ("utf16le.txt", "a b c".encode("utf-16-le"), "a NUL character.*[^$]*iconv -f UTF-16LE"),
        ("utf16be.jsonl", '{"text": "a"}'.encode("utf-16-be"), "iconv -f UTF-16BE"),
        ("utf16.csv", "text\na b c".encode("utf-16"), "iconv -f UTF-16 -t"),
        ("utf32.csv", "text\na b c".encode("utf-32"), "iconv -f UTF-32 -t"),
        ("nul.txt", b"Once upon\0 a time", "byte 0x00 at 9.*[^$]*tr -d"),
        ("cells.csv", b"text\nOnce, there was\n", "line 2 has 2 cells"),
        ("few.csv", b"id,text\n1,a\n2\n", "line 3 has 1 cells"),
        ("number.jsonl", b'{"text": 5}\n', "line 1: column 'text' contains int"),
        ("fake.parquet", b"not a parquet file", "parquet"),
        ("stories.docx", b"PK", "ends in .docx"),
        ("empty.csv", b"", "no column 'text' among none"),
        ("fake.txt.gz", b"no gzip", "cannot be read"),
        ("cut.txt.gz", gzip.compress(b"Once upon a time", mtime=0)[:-9], "cannot be read"),
    ],
)
def test_a_bad_file_is_explained_with_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_stories(path, "text"))
    assert name in error.value.found


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path):
    column = pyarrow.array([b"a", b"b", b"c", b"caf\xe9"]).view(pyarrow.string())
    path = tmp_path / "latin.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=3)
    with pytest.raises(UserError, match=r"latin.parquet, row 4 is not UTF-8"):
        list(read_stories(path, "text"))
    (_, second) = cut_file(path, StoryText("text"), None, 1)
    with pytest.raises(UserError, match=r"row 4"):
        list(second.stories())


@pytest.mark.parametrize("length", [1, 300_000, 1_500_000])
def test_an_array_is_read_in_blocks(tmp_path, length):
    """TinyStories' own download: one array per file."""
    stories = [f"{n} " + "é" * length for n in range(3)]
    rows = [{"text": story, "instruction": {"words": ["a", "}"]}} for story in stories]
    path = tmp_path / "data00.json"
    for text in (json.dumps(rows), "\ufeff " + json.dumps(rows, ensure_ascii=False, indent=1)):
        path.write_text(text, encoding="utf-8")
        assert list(read_stories(path, "text")) == stories
    path.write_text(" [ ] ", encoding="utf-8")
    assert list(read_stories(path, "text")) == []


def test_an_unreadable_place_is_explained(tmp_path):
    for name in ("none.txt", "none.csv", "none.parquet"):
        with pytest.raises(UserError, match=name):
            list(read_stories(tmp_path / name, "text"))


def test_the_kinds_of_this_file_are_written_differently(tmp_path):
    """The helper of these tests writes what it says."""
    assert json.loads(write_stories(tmp_path / "a.jsonl", ["x"]).read_text()) == {
        "id": 1,
        "text": "x",
    }
    with write_stories(tmp_path / "a.csv", ["x"]).open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "text"], ["1", "x"]]
