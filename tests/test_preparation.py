"""From stories to token files and their manifest: the same bytes, whatever comes between."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_stories, write_stories
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import preparation
from slm.data import shards as shards_module
from slm.data.cleaning import Cleaning
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared, find_folder, prepare
from slm.data.tokenizer import Tokenizer
from slm.data.verification import verify
from slm.errors import UserError

FILES = ("train.bin", "validation.bin", "tokenizer.json", "manifest.json")
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [("gpt2", 50257), ("bpe", 300)], ids=lambda t: t[0]
)


def corpus_of(source, tmp_path, tokenizer=("gpt2", 50257), share=0.2, **options):
    return Corpus(
        str(source), str(tmp_path / "data"), *tokenizer, validation_share=share, **options
    )


@pytest.fixture
def corpus(stories_txt, tmp_path):
    return corpus_of(stories_txt, tmp_path)


def read_back(folder, split):
    """The stories of a prepared split, decoded."""
    manifest = Manifest.load(folder)
    tokenizer = manifest.make_tokenizer(folder)
    ids = np.fromfile(Manifest.path(folder, split), manifest.dtype)
    assert ids[-1] == tokenizer.end_of_text
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    return [tokenizer.decode(story[:-1]) for story in np.split(ids, ends + 1)[:-1]]


def all_back(folder):
    return read_back(folder, "train") + read_back(folder, "validation")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def texts(corpus):
    """The stories of each split, straight from the source."""
    stories = {"train": [], "validation": []}
    for piece in corpus.opened.pieces(1 << 30):
        for split, story, _ in corpus.stories(piece):
            stories[split].append(story)
    return stories


# ---- what is in the files ----------------------------------------------------------------


@TOKENIZERS
def test_every_story_is_there_closed_by_end_of_text(stories_txt, tmp_path, tokenizer):
    corpus, folder = corpus_of(stories_txt, tmp_path, tokenizer), tmp_path / "out"
    manifest = prepare(corpus, folder)
    for split, expected in texts(corpus).items():
        assert read_back(folder, split) == expected
        facts = manifest.splits[split]
        data = (folder / f"{split}.bin").read_bytes()
        assert facts.stories == len(expected) > 10
        assert facts.bytes == sum(len(story.encode()) for story in expected)
        assert facts.tokens == len(data) // 2
        assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert verify(folder) == manifest


@TOKENIZERS
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "folder", "hub"])
def test_the_outcome_depends_on_neither_pieces_nor_processes(
    tmp_path, tokenizer, kind, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    stories, source = make_stories(300), tmp_path / f"s.{kind}"
    if kind == "parquet":
        table = pyarrow.table({"text": stories})
        pyarrow.parquet.write_table(table, source, row_group_size=20)
    elif kind in ("txt", "jsonl"):
        write_stories(source, stories)
    else:
        source.mkdir()
        for n in range(3):
            part = source / (f"train-{n}.parquet" if kind == "hub" else f"{n}.jsonl.gz")
            write_stories(part, stories[100 * n : 100 * n + 100])
    spec = f"hub:{source}" if kind == "hub" else source
    outcomes, shards = [], []
    monkeypatch.setattr(shards_module, "_BATCH_CHARACTERS", 500)
    # One piece and four workers: as many threads.
    for workers, piece_bytes in ((1, 1 << 30), (4, 1 << 30), (1, 1000), (2, 3000), (4, 3000)):
        if workers > 1 and piece_bytes == 3000 and kind not in ("txt", "hub"):
            continue  # starting processes takes seconds
        corpus = corpus_of(spec, tmp_path, tokenizer, prepare_workers=workers)
        prepare(corpus, tmp_path / "out", piece_bytes=piece_bytes)
        shards.append(len(corpus.opened.pieces(piece_bytes)))
        outcomes.append(contents(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert shards[:2] == [1, 1]
    assert min(shards[2:]) > 2


def test_a_vocabulary_above_16_bits_takes_32(stories_txt, tmp_path):
    corpus = corpus_of(stories_txt, tmp_path, ("bpe", 70_000))
    manifest = prepare(corpus, tmp_path / "out")
    assert manifest.dtype == np.dtype("<u4")
    assert read_back(tmp_path / "out", "train") == texts(corpus)["train"]


def test_a_spelt_out_separator_in_a_column_stays_text(tmp_path):
    text = "She wrote <|endoftext|> on the wall."
    source = write_stories(tmp_path / "s.jsonl", [text, *make_stories(50)])
    prepare(corpus_of(source, tmp_path), tmp_path / "out")
    assert text in all_back(tmp_path / "out")


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    source = write_stories(tmp_path / "s.jsonl", ["odd \ud83d one", *make_stories(50)])
    prepare(corpus_of(source, tmp_path), tmp_path / "out")
    assert "odd ? one" in all_back(tmp_path / "out")


def test_empty_stories_are_kept_unless_cleaning_drops_them(tmp_path):
    source = write_stories(tmp_path / "s.jsonl", ["", "  ", *make_stories(50), "\n"])
    kept = prepare(corpus_of(source, tmp_path), tmp_path / "kept")
    assert sum(facts.stories for facts in kept.splits.values()) == 53
    assert {"", "  ", "\n"} < set(all_back(tmp_path / "kept"))
    clean = Cleaning(drop_empty=True)
    dropped = prepare(corpus_of(source, tmp_path, clean=clean), tmp_path / "dropped")
    assert sum(facts.stories for facts in dropped.splits.values()) == 50
    assert sum(facts.empty_dropped for facts in dropped.splits.values()) == 3
    verify(tmp_path / "dropped")


@settings(max_examples=30)
@given(st.lists(st.text(), max_size=20))
def test_any_stories_come_back(tmp_path_factory, stories):
    """Through JSON, tokenizer and files; lone surrogates apart, which are no text."""
    folder = tmp_path_factory.mktemp("any")
    source = write_stories(folder / "s.jsonl", [*stories, *make_stories(40)])
    prepare(corpus_of(source, folder, ("bpe", 260), share=0.3), folder / "out", piece_bytes=50)
    assert sorted(all_back(folder / "out")) == sorted([*stories, *make_stories(40)])


@pytest.mark.parametrize("pieces", [1 << 30, 300])
def test_repetitions_are_dropped_across_pieces_and_splits(tmp_path, pieces):
    (tmp_path / "s").mkdir()
    stories = make_stories(60)
    assert len(set(stories)) == 60
    train = [*stories[:40], *stories[10:30], *stories[:5], stories[55], stories[55]]
    write_stories(tmp_path / "s" / "train.jsonl", train)
    write_stories(tmp_path / "s" / "validation.jsonl", [*stories[40:], *stories[45:50]])
    corpus = corpus_of(tmp_path / "s", tmp_path, clean=Cleaning(drop_duplicates=True))
    manifest = prepare(corpus, tmp_path / "out", piece_bytes=pieces)
    assert read_back(tmp_path / "out", "validation") == stories[40:]
    assert read_back(tmp_path / "out", "train") == stories[:40], "and nothing of validation"
    assert manifest.splits["train"].duplicates_dropped == 27
    assert manifest.splits["validation"].duplicates_dropped == 5
    verify(tmp_path / "out")


def test_nothing_is_dropped_or_repaired_by_default(tmp_path):
    stories = ["donâ€™t", "donâ€™t", "", *make_stories(40)]
    source = write_stories(tmp_path / "s.jsonl", stories)
    prepare(corpus_of(source, tmp_path), tmp_path / "out")
    assert sorted(all_back(tmp_path / "out")) == sorted(stories)


def test_mojibake_is_repaired_and_counted(tmp_path):
    stories = ["donâ€™t", "cafÃ©", "don’t “quote” ©", *make_stories(40)]
    source = write_stories(tmp_path / "s.jsonl", stories)
    corpus = corpus_of(source, tmp_path, clean=Cleaning(repair_mojibake=True))
    manifest = prepare(corpus, tmp_path / "out")
    assert {"don’t", "café", "don’t “quote” ©"} < set(all_back(tmp_path / "out"))
    assert sum(facts.repaired for facts in manifest.splits.values()) == 2


def test_repairing_without_its_package_names_it(tmp_path, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    corpus = corpus_of(tmp_path / "stories.txt", tmp_path, clean=Cleaning(repair_mojibake=True))
    with pytest.raises(UserError, match="ftfy") as error:
        ensure_prepared(corpus)
    assert error.value.remedy == "pip install ftfy"


# ---- once, and again ---------------------------------------------------------------------


def test_prepared_data_are_used_again_and_need_no_source(corpus, stories_txt):
    folder = ensure_prepared(corpus)
    before = contents(folder), (folder / "train.bin").stat().st_mtime_ns
    stories_txt.unlink()
    assert ensure_prepared(corpus) == folder
    assert before == (contents(folder), (folder / "train.bin").stat().st_mtime_ns)


def test_a_changed_source_is_prepared_anew_in_the_same_vocabulary(stories_txt, tmp_path, capsys):
    folder = ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300)))
    first, vocabulary = Manifest.load(folder), (folder / "tokenizer.json").read_bytes()
    write_stories(stories_txt, ["An entirely other text about zebras."] * 300 + make_stories(300))
    assert ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300))) == folder
    assert Manifest.load(folder).splits["train"].stories > first.splits["train"].stories
    assert (folder / "tokenizer.json").read_bytes() == vocabulary
    assert "has changed" in capsys.readouterr().err


def test_another_sources_data_are_not_overwritten(corpus, tmp_path):
    folder = ensure_prepared(corpus)
    before = contents(folder)
    (tmp_path / "b").mkdir()
    other = write_stories(tmp_path / "b" / "stories.txt", make_stories(100, seed=2))
    with pytest.raises(UserError, match="contains data prepared from"):
        ensure_prepared(corpus_of(other, tmp_path))
    with pytest.raises(UserError, match=r"validation_share 0.2\n  expected: validation_share 0.3"):
        ensure_prepared(corpus_of(tmp_path / "stories.txt", tmp_path, share=0.3))
    assert contents(folder) == before


def test_folder_names_tell_source_tokenizer_and_cleaning(corpus, tmp_path):
    def name(source, *options, **more):
        return Corpus(source, "data", *options, **more).folder_name()

    assert name("hub:roneneldan/TinyStories") == "TinyStories-gpt2"
    assert name("builtin", "bpe", 2048) == "builtin-bpe2048"
    assert name("/a/My stories!.txt") == "My-stories-gpt2"
    assert name("/a/b.jsonl.gz", clean=Cleaning(True, True, True)) == (
        "b-gpt2-repaired-nonempty-unique"
    )
    assert name(["builtin", "x.txt"]) == "builtin+x-gpt2"
    prepare(corpus_of(tmp_path / "stories.txt", tmp_path, ("bpe", 300)), tmp_path / "out")
    given = name("builtin", str(tmp_path / "out" / "tokenizer.json"))
    assert re.fullmatch(r"builtin-bpe300-[0-9a-f]{8}", given)


def test_a_given_tokenizer_is_used_and_found_where_it_was_learnt(stories_txt, tmp_path):
    learnt = ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300)))
    path = str(learnt / "tokenizer.json")
    assert find_folder(corpus_of(stories_txt, tmp_path, (path, 300))) == learnt
    other = write_stories(tmp_path / "other.txt", make_stories(100, seed=3))
    folder = ensure_prepared(corpus_of(other, tmp_path, (path, 300)))
    assert (folder / "tokenizer.json").read_bytes() == (learnt / "tokenizer.json").read_bytes()
    assert folder.name.startswith("other-bpe300-")


def test_another_file_of_the_same_name_gets_a_folder_of_its_own(stories_txt, tmp_path):
    learnt = ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300)))
    (tmp_path / "b").mkdir()
    other = write_stories(tmp_path / "b" / "stories.txt", make_stories(100, seed=3))
    folder = ensure_prepared(corpus_of(other, tmp_path, (str(learnt / "tokenizer.json"), 300)))
    assert folder != learnt
    assert sorted(all_back(folder)) == sorted(make_stories(100, seed=3))


@pytest.mark.parametrize("step", range(5))
def test_killed_between_the_last_movements_of_a_changed_source(stories_txt, tmp_path, step, capsys):
    """The old vocabulary is kept, and no shard is done again."""
    folder = ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300)))
    vocabulary = (folder / "tokenizer.json").read_bytes()
    write_stories(stories_txt, ["Of zebras."] * 100 + make_stories(300, seed=4))

    class KilledError(Exception):
        pass

    moves = iter(range(100))
    replace_, unlink = Path.replace, Path.unlink

    def watched(act):
        def move(self, *args, **kwargs):
            ours = self.parent == folder or (args and args[0].parent == folder)
            if ours and next(moves) == step:
                raise KilledError
            return act(self, *args, **kwargs)

        return move

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", watched(replace_))
        patch.setattr(Path, "unlink", watched(unlink))
        with pytest.raises(KilledError):
            ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300)))
    capsys.readouterr()
    ensure_prepared(corpus_of(stories_txt, tmp_path, ("bpe", 300)))
    assert "Encoded    0 of 1 shards" in capsys.readouterr().err
    assert (folder / "tokenizer.json").read_bytes() == vocabulary
    assert sorted(all_back(folder)) == sorted(["Of zebras."] * 100 + make_stories(300, seed=4))
    verify(folder)


def test_data_that_were_there_survive_a_failed_preparation(corpus, stories_txt, tmp_path):
    folder = ensure_prepared(corpus)
    before = contents(folder)
    stories_txt.write_text("")
    with pytest.raises(UserError, match="contains no story"):
        ensure_prepared(corpus_of(stories_txt, tmp_path))
    assert contents(folder) == before


# ---- interrupted -------------------------------------------------------------------------


SCRIPT = """
import sys
from slm.data import preparation
from slm.data import shards as shards_module
from slm.data.cleaning import Cleaning
from slm.data.corpus import Corpus
preparation.PIECE_BYTES = 60_000
if __name__ == "__main__":
    source, root, workers = sys.argv[1:]
    clean = Cleaning(drop_duplicates=True)
    corpus = Corpus(source, root, "bpe", 1000, clean=clean, prepare_workers=int(workers))
    preparation.ensure_prepared(corpus)
    print("done")
"""
NAME = "many-bpe1000-unique"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough stories that preparing them takes a while, and what they have to become."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "prepare.py").write_text(SCRIPT)
    stories = [" ".join(make_stories(8, seed)) for seed in range(6000)]
    write_stories(folder / "many.txt", stories)
    run(folder, "whole", 1)
    return folder


def start(folder, root, workers):
    return subprocess.Popen(
        [sys.executable, "prepare.py", "many.txt", root, str(workers)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has Ctrl-C ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run(folder, root, workers):
    process = start(folder, root, workers)
    out, err = process.communicate(timeout=120)
    assert out == "done\n", err
    return err


def finished_shards(folder):
    """Names of the shards that are finished."""
    return [path.name for path in (folder / "unfinished").glob("0*.json")]


def kill_and_go_on(many, root, shards, seconds, workers):
    """One kill -9 when so many shards are finished and some time has passed.

    Returns:
        How many shards were finished then; None if all was done before.
    """
    process, folder = start(many, root, workers), many / root / NAME
    while process.poll() is None and len(finished_shards(folder)) < shards:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    time.sleep(0.1)  # workers end with their parent, within milliseconds
    complete, before = (folder / "manifest.json").exists(), finished_shards(folder)
    err = run(many, root, workers)
    if complete:
        assert "Encoded" not in err
    else:
        total = int(re.search(r"Encoded +\d+ of (\d+) shards", err)[1])
        assert f"Encoded    {total - len(before)} of {total} shards" in err
        if before:
            assert f"Resuming   {len(before)} of {total} shards" in err
    assert contents(folder) == contents(many / "whole" / NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return None if complete else len(before)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(many):
    total = len(corpus_of(many / "many.txt", many).opened.pieces(60_000))
    rng = random.Random(7)
    moments = [(rng.randint(0, total), rng.uniform(0, 0.05)) for _ in range(15)]
    moments += [(0, rng.uniform(0, 2)) for _ in range(5)]  # before the first shard, mostly
    found = [
        kill_and_go_on(many, f"twenty-{n}", shards, seconds, workers=1 + n % 3)
        for n, (shards, seconds) in enumerate(moments)
    ]
    print(f"of {total} shards finished when it was killed: {found}")
    assert sum(count is not None and count > 0 for count in found) >= 10


def test_several_kills_of_the_same_preparation(many):
    for seconds in (1.0, 1.3, 1.5):
        process = start(many, "often", 2)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    run(many, "often", 2)
    assert contents(many / "often" / NAME) == contents(many / "whole" / NAME)


def test_workers_end_with_a_killed_parent(many):
    process = start(many, "orphans", 2)
    deadline = time.monotonic() + 30
    while not list((many / "orphans" / NAME).glob("unfinished/0*.tmp-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while True:
        try:
            os.killpg(process.pid, 0)  # does anyone of its session live?
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_interrupting_keeps_what_is_finished_and_says_so(many):
    process = start(many, "ctrl-c", 2)
    while process.poll() is None and not finished_shards(many / "ctrl-c" / NAME):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
    _, err = process.communicate(timeout=30)
    assert process.returncode, err
    assert re.search(r"Interrupted with [1-9]\d* of \d+ shards finished", err)
    assert err.count("Traceback") == 1, "the script's own, none of a worker's"
    assert "Resuming" in run(many, "ctrl-c", 2)
    assert contents(many / "ctrl-c" / NAME) == contents(many / "whole" / NAME)


def test_another_plan_starts_again(stories_txt, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    stopped_before_joining(corpus_of(stories_txt, tmp_path), folder, None, monkeypatch)
    prepare(corpus_of(stories_txt, tmp_path, share=0.3), folder)
    assert "Resuming" not in capsys.readouterr().err
    assert Manifest.load(folder).reading["validation_share"] == 0.3


def test_a_damaged_shard_is_done_again(stories_txt, tmp_path, monkeypatch, capsys):
    folder, corpus = tmp_path / "out", corpus_of(stories_txt, tmp_path)
    stopped_before_joining(corpus, folder, 2000, monkeypatch)
    total = len(finished_shards(folder))
    assert total > 3
    (folder / "unfinished" / "00001.train.bin").write_bytes(b"12")
    (folder / "unfinished" / "00002.json").write_text("{")
    manifest = prepare(corpus, folder, piece_bytes=2000)
    assert f"Resuming   {total - 2} of {total} shards" in capsys.readouterr().err
    assert verify(folder) == manifest


def test_two_processes_at_once_prepare_once(many):
    first, second = start(many, "both", 2), start(many, "both", 1)
    errs = [process.communicate(timeout=120) for process in (first, second)]
    assert [out for out, _ in errs] == ["done\n", "done\n"], errs
    assert sorted("Encoded" in err for _, err in errs) == [False, True]
    assert any("Waiting    for another process" in err for _, err in errs)
    assert contents(many / "both" / NAME) == contents(many / "whole" / NAME)


def stopped_before_joining(corpus, folder, piece_bytes, monkeypatch):
    """Leaves an unfinished preparation, with all its shards finished."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "join_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, folder, piece_bytes=piece_bytes)
    assert finished_shards(folder)


def test_another_version_with_the_same_times_starts_again(tmp_path, monkeypatch, capsys):
    source = write_stories(tmp_path / "s.jsonl.gz", make_stories(50))
    stopped_before_joining(corpus_of(source, tmp_path), tmp_path / "out", None, monkeypatch)
    times = source.stat().st_atime_ns, source.stat().st_mtime_ns
    write_stories(source, make_stories(50, seed=1))
    os.utime(source, ns=times)
    prepare(corpus_of(source, tmp_path), tmp_path / "out")
    assert "Resuming" not in capsys.readouterr().err
    assert sorted(all_back(tmp_path / "out")) == sorted(make_stories(50, seed=1))


def test_what_killed_processes_left_is_removed(stories_txt, tmp_path, monkeypatch):
    corpus, folder = corpus_of(stories_txt, tmp_path), tmp_path / "out"
    stopped_before_joining(corpus, folder, None, monkeypatch)
    left = [folder / "manifest.json.tmp-1", folder / "unfinished" / "00000.train.bin.tmp-1"]
    for path in left:
        path.write_text("half")
    prepare(corpus, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_a_damaged_learnt_vocabulary_is_learnt_again(stories_txt, tmp_path, monkeypatch):
    corpus, folder = corpus_of(stories_txt, tmp_path, ("bpe", 300)), tmp_path / "out"
    prepare(corpus, tmp_path / "whole")
    stopped_before_joining(corpus, folder, None, monkeypatch)
    (folder / "unfinished" / "tokenizer.json").write_text("{")
    prepare(corpus, folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_mistyped_source_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ensure_prepared(corpus_of(tmp_path / "nowhere", tmp_path))
    assert not (tmp_path / "data").exists()


def test_options_that_do_not_matter_do_not_keep_data_apart(tmp_path):
    (tmp_path / "s").mkdir()
    write_stories(tmp_path / "s" / "train.txt", make_stories(50))
    write_stories(tmp_path / "s" / "valid.txt", make_stories(9, seed=1))
    first = ensure_prepared(corpus_of(tmp_path / "s", tmp_path, share=0.1))
    again = ensure_prepared(corpus_of(tmp_path / "s", tmp_path, share=0.2, text_column="other"))
    assert first == again
    assert Manifest.load(first).reading["validation_share"] is None


def test_counts_that_are_known_are_compared_and_the_difference_is_said(
    stories_txt, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(preparation, "difference_from_known", lambda manifest: "it differs")
    prepare(corpus_of(stories_txt, tmp_path), tmp_path / "out")
    assert "Note       it differs" in capsys.readouterr().err


# ---- the disk ----------------------------------------------------------------------------


LIMITED = """
import resource, sys
from slm.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["prepare", "--data.source", "many.txt", "--data.root", "limited",
               "--data.tokenizer", "bpe", "--data.vocab_size", "1000"]))
"""


@pytest.mark.parametrize("limit", [5_000, 100_000, 700_000])
def test_files_that_may_not_grow_are_explained_and_the_rerun_succeeds(many, limit):
    """Stands for a full disk: writing fails, at different moments."""
    folder = many / "limited" / "many-bpe1000"
    shutil.rmtree(many / "limited", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit)], cwd=many, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert "make room" in done.stderr
    assert not (folder / "manifest.json").exists()
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        Manifest.load(folder)
    again = subprocess.run(
        [sys.executable, "-c", LIMITED, str(resource.RLIM_INFINITY)],
        cwd=many, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    verify(folder)


def test_a_full_disk_is_explained(corpus, monkeypatch):
    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match="No space left") as error:
        ensure_prepared(corpus)
    assert "--data.root" in error.value.remedy
    monkeypatch.undo()
    verify(ensure_prepared(corpus))


def test_a_place_that_cannot_be_written_to_is_explained(stories_txt, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written to"):
        ensure_prepared(corpus_of(stories_txt, tmp_path))


# ---- what cannot be prepared -------------------------------------------------------------


@pytest.mark.parametrize("stories", ["", "\n\n<|endoftext|>\n"])
def test_an_empty_corpus_is_explained(tmp_path, stories):
    (tmp_path / "empty.txt").write_text(stories)
    with pytest.raises(UserError, match=r"empty.txt contains no story"):
        ensure_prepared(corpus_of(tmp_path / "empty.txt", tmp_path))
    assert not list((tmp_path / "data").rglob("*.*"))


def test_an_empty_validation_split_is_explained(tmp_path):
    (tmp_path / "s").mkdir()
    write_stories(tmp_path / "s" / "train.txt", make_stories(50))
    (tmp_path / "s" / "validation.txt").write_text("")
    with pytest.raises(UserError, match=r"validation split of .* contains no story"):
        ensure_prepared(corpus_of(tmp_path / "s", tmp_path))
    write_stories(tmp_path / "three.txt", make_stories(3))
    with pytest.raises(UserError, match="contains no story") as error:
        ensure_prepared(corpus_of(tmp_path / "three.txt", tmp_path, share=1e-6))
    assert "--data.validation_share" in error.value.remedy


def test_a_bad_story_in_a_worker_is_explained(many, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes((many / "many.txt").read_bytes() + b"\xff")
    corpus = corpus_of(path, tmp_path, prepare_workers=2)
    with pytest.raises(UserError, match=r"bad\.txt, line \d+ is not UTF-8"):
        prepare(corpus, tmp_path / "out", piece_bytes=500_000)


def test_a_worker_that_is_killed_is_explained(many, tmp_path):
    corpus = corpus_of(many / "many.txt", tmp_path, prepare_workers=2)

    def kill_one():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for path in (tmp_path / "out").glob("unfinished/0*.tmp-*"):
                os.kill(int(path.name.rpartition("-")[2]), signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match="a process that prepared data was killed") as error:
        prepare(corpus, tmp_path / "out", piece_bytes=100_000)
    killer.join()
    assert "--data.prepare_workers 1" in error.value.remedy
    prepare(corpus, tmp_path / "out", piece_bytes=100_000)
    verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 0.0}, "validation_share 0.0"),
        ({"prepare_workers": 0}, "prepare_workers 0"),
        ({"tokenizer": "gpt2", "vocab_size": 4096}, "--data.tokenizer bpe"),
        ({"tokenizer": "gpt3"}, "--data.tokenizer gpt3"),
        ({"text_column": "{a"}, "text_column {a"),
    ],
)
def test_options_out_of_range_are_explained(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ensure_prepared(Corpus("builtin", **options))


def test_a_stopped_preparation_keeps_the_learnt_vocabulary(stories_txt, tmp_path, monkeypatch):
    corpus, folder = corpus_of(stories_txt, tmp_path, ("bpe", 300)), tmp_path / "out"
    monkeypatch.setattr(preparation, "write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(corpus, folder)
    monkeypatch.undo()
    monkeypatch.setattr(Tokenizer, "train", lambda *_: pytest.fail("learnt a second time"))
    prepare(corpus, folder)
    plan = json.loads((folder / "manifest.json").read_text())
    assert plan["tokenizer"]["n_vocab"] == 300
