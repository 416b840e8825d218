"""What prepared data are like."""

import itertools

import numpy as np
import pytest
from conftest import make_stories, write_stories
from hypothesis import given
from hypothesis import strategies as st

from slm.data import verification
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import prepare
from slm.data.statistics import SplitStatistics, count_split, examples, histogram


@pytest.fixture
def folder(tmp_path):
    source = write_stories(tmp_path / "s.jsonl", ["", *make_stories(200)])
    prepare(Corpus(str(source), "unused", "bpe", 300, validation_share=0.2), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_counts_agree_with_the_ids_however_they_are_read(folder, block, monkeypatch):
    monkeypatch.setattr(verification, "_BLOCK", block)
    manifest = Manifest.load(folder)
    ids = np.fromfile(folder / "train.bin", "<u2")
    counted = count_split(folder, manifest, "train")
    facts = manifest.splits["train"]
    assert counted.counts.tolist() == np.bincount(ids, minlength=300).tolist()
    assert len(counted.lengths) == facts.stories
    assert counted.lengths.sum() == facts.tokens
    assert counted.ids_used == len(set(ids.tolist()))


def test_frequency_and_fit():
    counts, ends = np.array([0, 90, 9, 1]), np.array([3, 9, 99])
    counted = SplitStatistics(counts, ends)
    assert counted.ids_used == 3
    assert [counted.most_frequent_for(share) for share in (0.5, 0.9, 0.95, 0.99, 1.0)] == [
        1, 1, 2, 2, 3,
    ]  # fmt: skip
    assert counted.lengths.tolist() == [4, 6, 90]
    assert [counted.fitting(size) for size in (3, 6, 90)] == pytest.approx([0, 2 / 3, 1])


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_a_histogram_counts_each_story_once_in_few_round_bars(lengths):
    lengths = np.array(lengths)
    bars = histogram(lengths)
    assert sum(count for _, _, count in bars) == len(lengths)
    assert len(bars) <= 12
    starts = [start for start, _, _ in bars]
    assert starts == [1 + n * (starts[1] - 1 if len(starts) > 1 else 0) for n in range(len(bars))]
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(bars))


def test_examples_are_whole_stories_drawn_by_a_seed(folder):
    manifest = Manifest.load(folder)
    ends = count_split(folder, manifest, "train").ends
    drawn = examples(folder, manifest, "train", ends, 1, 3)
    assert len(drawn) == 3
    assert set(drawn) <= {"", *make_stories(200)}
    assert drawn == examples(folder, manifest, "train", ends, 1, 3)
    assert drawn != examples(folder, manifest, "train", ends, 2, 3)
    everything = examples(folder, manifest, "train", ends, 1, 10_000)
    assert len(everything) == manifest.splits["train"].stories
    assert "" in everything or "" in examples(
        folder, manifest, "validation", count_split(folder, manifest, "validation").ends, 1, 9999
    )
