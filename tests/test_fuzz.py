"""Whatever is typed or written into a config: an answer, no crash, and no lost file."""

import contextlib
import gzip
import hashlib
import io
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from conftest import checkpoint, make_stories, write_stories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.cli import main
from slm.verbs import VERBS

STARTS_PROCESSES = ("verify-resume", "bench")
"""What these do right takes long; only what they refuse is tried."""

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
numbers = st.one_of(
    st.integers(-3, 3), st.integers(-(10**25), 10**25), st.floats(allow_nan=True), st.booleans()
).map(str)
files = st.sampled_from(
    [
        "", ".", "/", "-", "gone", "a b.txt", "ü.txt", "empty.txt", "empty.yaml", "stories.txt",
        "lightning_logs", "lightning_logs/version_0", "version_0", "data", "tiny.yaml", "/dev/null",
        "lightning_logs/version_0/checkpoints/best.ckpt", "notes.ckpt", "last", "best", "data/*",
    ]
)  # fmt: skip
junk = st.sampled_from(
    ["null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "*a", "&a", "1e999", "0x10", "~", "--", "'"]
)
values = st.one_of(words, numbers, files, junk)
configs = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.just("builtin")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["model", "data", "trainer", "gpt", "optimizer", "lr", "source", "x"]),
            inner, max_size=4,
        ),
    ),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def options(trained):
    """Names of each verb's options, as its help lists them."""
    names = {}
    for verb in VERBS:
        for part in ([verb, "generate"], [verb, "train"]) if verb == "bench" else ([verb],):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
                main([*part, "--help"])
            names[verb] = sorted({*names.get(verb, []), *re.findall(r"--[\w.]+", out.getvalue())})
        names[verb] = [n for n in names[verb] if n not in ("--help", "--print_config")]
        assert names[verb], verb
    return names


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A folder with a run, data, a config and files of other kinds."""
    path = tmp_path_factory.mktemp("fuzz") / "folder"
    shutil.copytree(trained, path)
    (path / "a b.txt").write_text("Once.\n<|endoftext|>\nTwice.")
    (path / "ü.txt").write_bytes(b"\xff\xfe\x00")
    (path / "empty.txt").touch()
    (path / "empty.yaml").touch()
    (path / "notes.ckpt").write_text("notes")
    return path


def fingerprints(folder):
    """Hashes of everything in a folder that was there before."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@contextlib.contextmanager
def no_longer_than(seconds):
    def hang(*_):
        raise AssertionError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(folder, line):
    """Runs a command line in a copy of the folder, and checks what must hold of every one."""
    before = fingerprints(folder)
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with (
            no_longer_than(60), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        ):  # fmt: skip
            try:
                status = main(line)
            except SystemExit as exit_:
                status = exit_.code or 0
    finally:
        os.chdir(here)
    printed = out.getvalue() + err.getvalue()
    assert status in ((0, 1, 2) if line[0] == "verify-resume" else (0, 2)), (line, printed)
    assert "Traceback" not in printed, (line, printed)
    assert status != 2 or "slm: error:" in printed, (line, printed)
    after = fingerprints(folder)
    lost = {name for name in before if after.get(name) != before[name]}
    assert not lost, (line, lost)
    for name in after.keys() - before.keys():  # what it has made
        (folder / name).unlink()


def cheap(verb, line):
    """Adds what makes a valid line short."""
    if verb == "fit":
        line = ["--config", "tiny.yaml", *line, "--report", "false", "--trainer.max_steps=1"]
        line = [word for word in line if not word.startswith("--budget")]
    if verb == "predict":
        line = [*line, "--max_new_tokens=2", "--prompt=Once", "--num_samples=1"]
    if verb == "evaluate":
        line = [*line, "--stories=bad"]  # only what it refuses is tried: an evaluation takes long
    if verb in STARTS_PROCESSES:
        line = [*line, "--steps=-1", "--repeats=-1"]
    return line


def lines(verb, names):
    """Command lines of a verb: known options, misspelt ones, with values or without."""
    spelt = st.sampled_from(names)
    option = st.one_of(spelt, spelt.map(lambda name: name[:-1]), words.map(lambda w: f"--{w}"))
    pair = st.one_of(
        st.tuples(option, values), option.map(lambda name: (name,)), values.map(lambda v: (v,))
    )
    return st.lists(pair, max_size=4).map(
        lambda pairs: cheap(verb, [word for pair in pairs for word in pair])
    )


def try_lines(verb, count, folder, names):
    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(lines(verb, names))
    def attempt(line):
        answer(folder, [verb, *line])

    attempt()


def try_configs(verb, count, folder):
    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(configs, st.booleans())
    def attempt(config, raw):
        text = str(config) if raw else yaml.safe_dump(config, allow_unicode=True)
        (folder / "fuzz.yaml").write_text(text, encoding="utf-8", errors="replace")
        last = ["--trainer.max_steps=1"] if verb == "fit" else []
        answer(folder, [verb, "--config", "fuzz.yaml", *last])

    attempt()
    (folder / "fuzz.yaml").unlink()


ENDINGS = (".txt", ".jsonl", ".csv", ".parquet", ".json", ".txt.gz", ".jsonl.gz", ".csv.gz")
odd_bytes = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"<|endoftext|>", b"\r\n", b'"', b"\\", b"[", b"{}",
         b"\xed\xa0\x80", b"\n\n", b",", b" " * 5000, b"[" * 5000, b'{"text": null}', b"NaN"]
    ),
)  # fmt: skip
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), odd_bytes), max_size=6)
"""Edits: relative position, number of bytes removed, bytes inserted."""


def try_sources(ending, count, folder):
    """Runs `prepare` on story files with random byte edits, before or after compression."""
    name = "fuzz.jsonl" if ending == ".json" else f"fuzz{ending.removesuffix('.gz')}"
    whole = write_stories(folder / name, make_stories(30)).read_bytes()
    (folder / name).unlink()

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(edits, st.booleans())
    def attempt(changes, array):
        data = whole
        if array and ending == ".json":
            data = b"[" + b",".join(filter(None, whole.splitlines())) + b"]"
        inside = ending.endswith(".gz") and array
        data = data if inside or not ending.endswith(".gz") else gzip.compress(data)
        for place, removed, put in changes:
            start = int(place * len(data))
            data = data[:start] + put + data[start + removed :]
        path = folder / f"fuzz{ending}"
        path.write_bytes(gzip.compress(data) if inside else data)
        answer(folder, ["prepare", f"--data.source={path.name}", "--data.root=fuzzed"])
        shutil.rmtree(folder / "fuzzed", ignore_errors=True)

    attempt()
    (folder / f"fuzz{ending}").unlink()


TRAINS = ("fit", "validate", "test")
filters = pytest.mark.filterwarnings("ignore")


@filters
@pytest.mark.parametrize("verb", VERBS)
def test_some_command_lines_have_an_answer(folder, options, verb, servers_end_at_once):
    try_lines(verb, 3, folder, options[verb])


@filters
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", VERBS)
def test_many_command_lines_have_an_answer(folder, options, verb, servers_end_at_once):
    try_lines(verb, 150, folder, options[verb])


@filters
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", [*TRAINS, "predict", "prepare"])
def test_many_configs_have_an_answer(folder, verb):
    try_configs(verb, 75, folder)


@filters
@pytest.mark.parametrize("ending", ENDINGS)
def test_some_sources_have_an_answer(folder, ending):
    try_sources(ending, 5, folder)


@filters
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ending", ENDINGS)
def test_many_sources_have_an_answer(folder, ending):
    try_sources(ending, 400, folder)


def test_the_run_was_not_touched(folder, trained):
    for name in ("best", "last"):
        assert checkpoint(name, root=folder).read_bytes() == (
            checkpoint(name, root=trained).read_bytes()
        )
