"""Running out of memory: smaller micro-batches, the same training."""

import gc

import pytest
import torch
from conftest import checkpoint, refuse

from slm.training.checkpoint import open_checkpoint
from slm.training.loss import NextTokenLoss
from slm.training.metrics import LanguageModelMetrics
from slm.training.module import StoryModel

SMALL = (
    "fit", "--config", "tiny.yaml", "--trainer.max_steps", 6, "--save_interval", 100,
    "--trainer.precision", "32-true",
)  # fmt: skip
plain_loss = NextTokenLoss.__call__


def weights(version=0):
    return open_checkpoint(checkpoint("last", version)).make_model().state_dict()


def limit_memory(monkeypatch, windows, good_calls=0):
    """From some call on, so many windows are the most that a loss has room for."""
    calls = []

    def loss(self, model, inputs, targets):
        calls.append(len(inputs))
        if len(inputs) > windows and len(calls) > good_calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain_loss(self, model, inputs, targets)

    monkeypatch.setattr(NextTokenLoss, "__call__", loss)
    return calls


def test_a_batch_too_large_is_halved_until_it_fits_and_trains_the_same(slm, monkeypatch):
    assert slm(*SMALL).status == 0
    calls = limit_memory(monkeypatch, 1)
    result = slm(*SMALL)
    assert result.status == 0, result.err
    assert calls == [4, 2, *[1] * 24]
    assert result.err.count("Memory     ") == 2
    assert "4 windows at once do not fit; continuing with 2, 2 times a step" in result.err
    assert "2 windows at once do not fit; continuing with 1, 4 times a step" in result.err
    assert not checkpoint("last", 2).exists(), "the attempts are one run"
    for name, value in weights(0).items():
        torch.testing.assert_close(weights(1)[name], value, rtol=1e-4, atol=1e-5)


def test_what_was_trained_before_is_kept(slm, monkeypatch):
    assert slm(*SMALL).status == 0
    calls = limit_memory(monkeypatch, 2, good_calls=4)
    result = slm(*SMALL)
    assert result.status == 0, result.err
    assert calls == [4, 4, 4, 4, 4, 2, 2, 2, 2], "two steps are left, of two micro-batches"
    assert "Resuming" in result.err
    assert "at step 4" in result.err
    assert "batch_size 4 -> 2" in result.err
    for name, value in weights(0).items():
        torch.testing.assert_close(weights(1)[name], value, rtol=1e-4, atol=1e-5)


def test_the_checkpoint_is_opened_when_the_memory_is_free(slm, monkeypatch):
    limit_memory(monkeypatch, 2, good_calls=4)
    alive = []

    def count():  # those of other tests may be among them
        return sum(type(each) is StoryModel for each in gc.get_objects())

    def note(path):
        alive.append(count())
        return open_checkpoint(path)

    monkeypatch.setattr("slm.commands.fit.cli.open_checkpoint", note)
    gc.collect()
    before = count()
    assert slm(*SMALL).status == 0
    assert len(alive) == 1
    assert alive[0] <= before


def test_a_checkpoint_that_does_not_fit_is_not_called_damaged(slm, trained, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("unable to mmap 9 bytes from file <f>: Cannot allocate memory (12)")

    monkeypatch.setattr("torch.load", load)
    refuse(slm("info", checkpoint("best", root=trained)), "does not fit into the memory")


def test_an_odd_batch_is_cut_by_what_divides_it(slm, monkeypatch):
    calls = limit_memory(monkeypatch, 3)
    assert slm(*SMALL, "--data.batch_size", 9, "--trainer.max_steps", 1).status == 0
    assert calls == [9, 3, 3, 3]


def test_single_windows_that_do_not_fit_are_a_mistake(slm, monkeypatch):
    limit_memory(monkeypatch, 0)
    refuse(slm(*SMALL), "out of memory", "--model.grad_checkpointing true")


def test_other_errors_are_not_taken_for_it(slm, monkeypatch):
    def loss(self, model, inputs, targets):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(NextTokenLoss, "__call__", loss)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        slm(*SMALL)


def test_a_validation_that_does_not_fit_is_no_reason_to_train_in_smaller_portions(slm, monkeypatch):
    def update(self, logits, targets):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LanguageModelMetrics, "update", update)
    refuse(slm(*SMALL), "out of memory", "--data.eval_batch_size")


def test_steps_that_no_checkpoint_holds_are_not_trained_again_in_silence(slm, monkeypatch):
    calls = limit_memory(monkeypatch, 2, good_calls=4)
    refuse(slm(*SMALL, "--trainer.enable_checkpointing", "false"), "out of memory")
    assert calls == [4] * 5
