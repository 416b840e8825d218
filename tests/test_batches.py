"""Batches as functions of an index."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slm.data.batches import (
    IGNORED,
    ConsecutiveWindows,
    EpochWindows,
    EveryNth,
    RandomWindows,
    TokenFile,
    random_words,
)

DTYPE = np.dtype("<u2")


@pytest.fixture
def tokens(tmp_path):
    """A file in which every token names its own position."""
    path = tmp_path / "train.bin"
    np.arange(1000, dtype=DTYPE).tofile(path)
    return path


def windows(path, batch_size=4, seed=1, first_sample=0, block_size=8):
    return RandomWindows(TokenFile(path, DTYPE), block_size, batch_size, seed, first_sample)


def test_a_run_goes_on_with_the_file_it_began_with(tokens):
    """Though the data are prepared again meanwhile, and shorter."""
    batches = windows(tokens)
    expected = [windows(tokens)[k][0].tolist() for k in range(5)]
    other = tokens.with_name("other.bin")
    np.zeros(20, DTYPE).tofile(other)
    other.replace(tokens)
    assert [batches[k][0].tolist() for k in range(5)] == expected
    assert windows(tokens)[0][0].max() == 0


def test_random_words_are_one_sequence_however_it_is_cut():
    whole = random_words(7, 0, 100)
    for start, count in ((0, 1), (3, 10), (17, 83), (99, 1)):
        assert np.array_equal(random_words(7, start, count), whole[start : start + count])
    assert not np.array_equal(random_words(8, 0, 100), whole)


def test_random_words_stay_what_they_are():
    """A resumed run of an older version must find the same samples."""
    assert random_words(1337, 0, 6).tolist() == [
        16963926426239326985,
        18158996713720971347,
        2084311154985580078,
        15250565812409554213,
        3997289629388898902,
        6647272832547886331,
    ]


def test_a_batch_is_a_pure_function_of_its_index(tokens):
    first = windows(tokens)
    in_order = [first[k] for k in range(20)]
    again = windows(tokens)
    for k in (19, 3, 3, 0):
        torch.testing.assert_close(again[k], in_order[k])
    assert not torch.equal(windows(tokens, seed=2)[0][0], in_order[0][0])


def test_targets_follow_inputs_and_windows_are_contiguous(tokens):
    inputs, targets = windows(tokens)[5]
    assert inputs.shape == targets.shape == (4, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))


def test_samples_do_not_depend_on_the_batch_size(tokens):
    small = torch.cat([windows(tokens, 4)[k][0] for k in range(6)])
    large = torch.cat([windows(tokens, 12)[k][0] for k in range(2)])
    assert torch.equal(small, large)


def test_resuming_at_any_sample_goes_on_with_the_same_samples(tokens):
    whole = torch.cat([windows(tokens, 4)[k][0] for k in range(6)])
    for sample in (0, 1, 7, 12):
        rest = torch.cat([windows(tokens, 4, first_sample=sample)[k][0] for k in range(3)])
        assert torch.equal(rest, whole[sample : sample + 12])


def test_processes_share_the_samples_without_overlap(tokens):
    whole = torch.cat([windows(tokens)[k][0] for k in range(6)])
    shares = []
    for rank in range(3):
        indices = iter(EveryNth(rank, 3))
        shares.append([windows(tokens)[next(indices)][0] for _ in range(2)])
    dealt = torch.cat([shares[k % 3][k // 3] for k in range(6)])
    assert torch.equal(dealt, whole)


def test_offsets_cover_the_whole_file_evenly(tokens):
    offsets = torch.cat([windows(tokens, 500)[k][0][:, 0] for k in range(40)])
    counts = offsets.bincount(minlength=992)
    assert len(counts) == 992, "the last window ends with the file's last token as target"
    assert counts.min() > 0
    # 20,000 draws over 992 offsets: chi-square has mean 991, deviation 44.5
    chi_square = ((counts - 20_000 / 992) ** 2 / (20_000 / 992)).sum()
    assert 991 - 5 * 44.5 < chi_square < 991 + 5 * 44.5


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches(tokens, workers):
    def take(num_workers):
        loader = DataLoader(
            windows(tokens), batch_size=None, sampler=EveryNth(), num_workers=num_workers
        )
        batches = iter(loader)
        return [next(batches)[0].clone() for _ in range(7)]

    assert all(torch.equal(a, b) for a, b in zip(take(0), take(workers), strict=True))


def test_a_pickled_data_set_holds_a_path_and_no_data(tokens):
    data = windows(tokens)
    data[0]
    assert len(pickle.dumps(data)) < 1000


def test_too_short_a_file_is_refused(tokens):
    with pytest.raises(ValueError, match="shorter than a window"):
        windows(tokens, block_size=1000)
    assert windows(tokens, block_size=999)[0][0][0, 0] == 0


@pytest.mark.parametrize(("block_size", "batch_size"), [(8, 4), (7, 3), (999, 1), (1000, 2)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_predicts_every_token_but_the_first_once(
    tokens, block_size, batch_size, world_size
):
    predicted, lengths, shapes = [], set(), set()
    for rank in range(world_size):
        data = ConsecutiveWindows(
            TokenFile(tokens, DTYPE), block_size, batch_size, rank, world_size
        )
        lengths.add(len(data))
        for k in range(len(data)):
            inputs, targets = data[k]
            shapes.add((tuple(inputs.shape), tuple(targets.shape)))
            counted = targets != IGNORED
            assert torch.equal(targets[counted], inputs[counted] + 1)
            predicted += targets[counted].tolist()
    assert sorted(predicted) == list(range(1, 1000))
    assert len(lengths) == 1, "unequal shares would hang the processes"
    assert shapes == {((batch_size, block_size), (batch_size, block_size))}


def epochs(path, batch_size=4, seed=1, first_sample=0, block_size=8):
    return EpochWindows(TokenFile(path, DTYPE), block_size, batch_size, seed, first_sample)


def starts(batches, count):
    return [int(row[0]) for k in range(count) for row in batches[k][0]]


def test_an_epoch_holds_every_window_once(tokens):
    batches = epochs(tokens)
    assert batches.windows == 124
    first, second = (starts(batches, 62)[k * 124 :][:124] for k in range(2))
    for epoch in (first, second):
        shift = min(epoch)
        assert shift < 8
        assert sorted(epoch) == [shift + 8 * k for k in range(124)]
        assert epoch != sorted(epoch)
    assert first != second


def test_targets_follow_inputs_in_an_epoch(tokens):
    for inputs, targets in (epochs(tokens)[k] for k in range(40)):
        assert inputs.shape == (4, 8)
        assert torch.equal(targets, inputs + 1)


def test_a_sample_of_an_epoch_is_a_function_of_its_index(tokens):
    """Whatever the batch size, and wherever a run goes on."""
    whole = starts(epochs(tokens, batch_size=1), 300)
    assert starts(epochs(tokens, batch_size=6), 50) == whole
    assert starts(epochs(tokens, batch_size=4, first_sample=123), 44) == whole[123:299]
    backwards = epochs(tokens, batch_size=1)
    assert [int(backwards[k][0][0, 0]) for k in reversed(range(300))] == whole[::-1]
    assert starts(epochs(tokens, seed=2), 10) != whole[:40]
    assert starts(pickle.loads(pickle.dumps(epochs(tokens))), 10) == whole[:40]


@pytest.mark.parametrize("length", [9, 10, 15, 16, 17, 23, 24, 25])
def test_short_files_have_epochs_too(tmp_path, length):
    path = tmp_path / "short.bin"
    np.arange(length, dtype=DTYPE).tofile(path)
    seen = starts(epochs(path, batch_size=1), 200)
    assert max(seen) + 8 <= length - 1
    assert min(seen) == 0
    with pytest.raises(ValueError, match="shorter than a window"):
        epochs(path, block_size=length)
