"""A run that was stopped and resumed is, bit by bit, the run that was not."""

import itertools
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import checkpoint

from slm.commands.verify_resume import compare_runs, curves, differences
from slm.data.datamodule import StoryData
from slm.training.checkpoint import open_checkpoint
from slm.training.module import StoryModel, seed_generators
from slm.training.runs import Run

PLAN = (
    "--config", "tiny.yaml", "--model.gpt.dropout", "0.1", "--trainer.accumulate_grad_batches", "2",
    "--trainer.max_steps", "24", "--trainer.log_every_n_steps", "5", "--save_interval", "7",
)  # fmt: skip
RECIPES = {
    "float32": ("--trainer.precision", "32-true"),
    "bf16": ("--trainer.precision", "bf16-mixed"),
    "muon": ("--model.optimizer.name", "muon", "--model.optimizer.muon_lr", "0.02"),
    "epochs, recomputed": ("--data.order", "epochs", "--model.grad_checkpointing", "true"),
}


def stop_after(monkeypatch, method, call):
    """A signal that arrives during a certain call of a step."""
    calls = itertools.count(1)
    original = getattr(StoryModel, method)

    def step(self, *arguments):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(StoryModel, method, step)


@pytest.fixture
def whole(slm):
    """Trains the undisturbed run with some options."""

    def train(*options):
        result = slm("fit", *PLAN, *options, "--trainer.default_root_dir", "whole")
        assert result.status == 0, result.err
        return checkpoint("last", root="whole").parent.parent

    return train


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_within_an_accumulation(slm, whole, monkeypatch, recipe):
    undisturbed = whole(*RECIPES[recipe])
    with monkeypatch.context() as context:
        stop_after(context, "training_step", 27)  # the first half of step 14
        assert slm("fit", *PLAN, *RECIPES[recipe]).status == 143
    assert open_checkpoint(checkpoint("last")).step == 13
    assert slm("fit", "--ckpt_path", "last").status == 0
    found = compare_runs(Run(undisturbed), Run.of(checkpoint("last")))
    assert not any(found.values()), found


@pytest.mark.parametrize(("validations", "step"), [(0, 10), (2, 24)])
def test_stopped_in_a_validation(slm, whole, workplace, monkeypatch, validations, step):
    """Which is made up for before training continues, also where no step is left to train."""
    options = ("--data.eval_batch_size", "1")
    undisturbed = whole(*options)
    tags = curves(undisturbed)
    assert [at for at, _ in tags["val_loss"]] == [10, 20, 24]
    with monkeypatch.context() as context:
        batches = measure_validation(undisturbed)
        stop_after(context, "validation_step", 2 + validations * batches)
        assert slm("fit", *PLAN, *options).status == 143
    stopped = open_checkpoint(checkpoint("last"))
    assert (stopped.step, stopped.validated) == (step, False)
    result = slm("fit", "--ckpt_path", "last")
    assert result.status == 0, result.err
    found = compare_runs(Run(undisturbed), Run.of(checkpoint("last")))
    assert not any(found.values()), found
    assert "already been trained" in slm("fit", "--ckpt_path", "last").err


def measure_validation(run):
    """Micro-batches of one validation, a window each."""
    data = open_checkpoint(run / "checkpoints" / "last.ckpt").entry["data"]
    return -(-(data["splits"]["validation"]["tokens"] - 1) // 16)


def test_stopped_twice_and_moved_between(slm, whole, workplace, monkeypatch):
    undisturbed = whole()
    for call, words in ((11, PLAN), (20, ("--ckpt_path", "last"))):
        with monkeypatch.context() as context:
            stop_after(context, "training_step", call)
            assert slm("fit", *words).status == 143
    (workplace / "elsewhere").mkdir()
    (workplace / "lightning_logs").rename(workplace / "elsewhere" / "lightning_logs")
    place = ("--trainer.default_root_dir", "elsewhere")
    assert slm("fit", "--ckpt_path", "last", *place).status == 0
    found = compare_runs(Run(undisturbed), Run.of(checkpoint("last", root="elsewhere")))
    assert not any(found.values()), found


def test_a_comparison_sees_what_differs(slm, whole):
    one = whole()
    assert slm("fit", *PLAN, "--seed_everything", "2").status == 0
    found = compare_runs(Run(one), Run.of(checkpoint("last")))
    assert found["weights"]
    assert found["optimizer"]
    assert found["curves"]
    assert not found["step"]
    nan = torch.tensor(float("nan"))
    assert not differences({"a": [nan]}, {"a": [nan.clone()]})
    assert differences({"a": [nan]}, {"a": [nan.double()]}) == ["a 0 differs"]
    assert differences({"a": 1}, {"b": 1})
    assert differences([1], [1, 2])
    assert differences(1, 1.0)


@pytest.mark.slow
def test_the_verb_proves_it_here(slm):
    result = slm("verify-resume", "--config", "tiny.yaml", "--steps", "12", "--kills", "1")
    assert result.status == 0, result.err
    assert result.out.count("identical") == 5
    assert "Identical, bit by bit" in result.out


def test_mistakes_in_proving_are_explained(slm):
    result = slm("verify-resume", "--config", "tiny.yaml", "--kills", "0")
    assert result.status == 2
    assert "one kill or more" in result.err
    result = slm("verify-resume", "--config", "tiny.yaml", "--data.source", "gone.txt")
    assert result.status == 2
    assert "gone.txt" in result.err
    assert "Traceback" not in result.err


# ---- dropout's random numbers -------------------------------------------------------------


def seeds(rank, world_size, accumulate, steps=6, batch_size=4, seed=1):
    """Dropout's seeds in the order in which a process uses them."""
    data = StoryData(source="builtin", batch_size=batch_size, seed=seed)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, accumulate_grad_batches=accumulate, global_step=0
    )
    found = []
    for data.trainer.global_step in range(steps):
        found += [data.dropout_seed(micro_batch) for micro_batch in range(accumulate)]
    return found


def test_no_two_micro_batches_share_their_masks():
    found = seeds(0, 2, 3) + seeds(1, 2, 3)
    assert len(set(found)) == len(found) == 36
    assert not set(found) & set(seeds(0, 2, 3, seed=2))


def test_two_processes_use_the_masks_of_one_that_accumulates_twice_as_often():
    one = seeds(0, 1, 4)
    first, second = seeds(0, 2, 2), seeds(1, 2, 2)
    assert one == [seed for pair in zip(first, second, strict=True) for seed in pair]


def test_generators_are_seeded_as_torch_would():
    seed_generators(torch.device("cpu"), 2**63 + 5)
    drawn = torch.rand(4)
    torch.manual_seed(2**63 + 5)
    assert torch.equal(torch.rand(4), drawn)
