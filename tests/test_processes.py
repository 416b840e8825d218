"""One run in several processes: the same as in one, and ended together."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import checkpoint

from slm.commands.verify_resume import curves
from slm.processes import process_rank
from slm.training.checkpoint import open_checkpoint
from slm.training.cluster import cluster_environments

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

SLM = [sys.executable, "-m", "slm.cli"]
FIT = (
    "fit", "--config", "tiny.yaml", "--trainer.precision", "32-true",
    "--trainer.log_every_n_steps", "1", "--model.gpt.dropout", "0.1",
)  # fmt: skip
TWO = (
    "--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accumulate_grad_batches", "2",
)  # fmt: skip
ENV = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
ENV |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(folder, *words, env=ENV, command=SLM):
    done = subprocess.run(
        [*command, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def outcome(root):
    """Curves and weights of the run under a root."""
    last = checkpoint("last", root=root)
    weights = open_checkpoint(last).contents["state_dict"]
    return curves(last.parent.parent), {n: w for n, w in weights.items() if w.is_floating_point()}


def furthest(one, other):
    """Largest relative difference of two curves."""
    assert [step for step, _ in one] == [step for step, _ in other]
    return max(abs(a - b) / abs(a) for (_, a), (_, b) in zip(one, other, strict=True))


BIT_EQUAL = """
import sys, torch
from lightning.pytorch import Callback
from slm.commands.fit import trainer
from slm.cli import main

class BitEqual(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        mine = torch.cat([p.detach().flatten() for p in module.parameters()])
        every = [torch.zeros_like(mine) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(every, mine)
        assert torch.equal(*every), trainer.global_step
        if trainer.is_global_zero:
            print("equal at", trainer.global_step, file=sys.stderr)

original = trainer.standard_callbacks
trainer.standard_callbacks = lambda *a: [*original(*a), BitEqual()]
sys.exit(main())
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_train_what_one_does(workplace, optimizer):
    """With dropout, for 50 steps; the ranks' weights are the same, bit by bit, after each step."""
    options = ("--trainer.max_steps", "50", "--model.optimizer.name", optimizer)
    options += ("--model.optimizer.lr", "0.003")
    if optimizer == "muon":
        options += ("--model.optimizer.muon_lr", "0.003")
    one, two = ("--trainer.default_root_dir", "one"), ("--trainer.default_root_dir", "two")
    run(workplace, *FIT, *options, *one, "--trainer.accumulate_grad_batches", "4")
    (workplace / "bit_equal.py").write_text(BIT_EQUAL)
    script = [sys.executable, "bit_equal.py"]
    err = run(workplace, *FIT, *options, *TWO, *two, command=script)
    assert "equal at 50" in err
    (before, weights), (after, others) = outcome(workplace / "one"), outcome(workplace / "two")
    losses, drift = (1e-6, 1e-5) if optimizer == "adamw" else (1e-3, 1e-2)
    assert furthest(before["train_loss"], after["train_loss"]) < losses
    assert furthest(before["val_loss"], after["val_loss"]) < losses
    assert before["tokens_seen"] == after["tokens_seen"]
    assert before["lr"] == after["lr"]
    assert max(float((w - others[name]).abs().max()) for name, w in weights.items()) < drift
    # What two processes wrote, one opens.
    last = checkpoint("last", root=workplace / "two")
    run(workplace, "validate", "--ckpt_path", str(last))
    more = ("--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.max_steps", "52")
    err = run(workplace, "fit", "--ckpt_path", "last", *two, *more)
    assert "processes 2 -> 1" in err
    assert "Steps have another size" in err


def test_sharded_weights_give_the_same_losses(workplace):
    options = ("--trainer.max_steps", "20", "--trainer.default_root_dir")
    run(workplace, *FIT, *TWO, *options, "ddp")
    run(workplace, *FIT, *TWO, *options, "fsdp2", "--trainer.strategy", "fsdp2")
    (before, weights), (after, others) = outcome(workplace / "ddp"), outcome(workplace / "fsdp2")
    for curve in ("train_loss", "val_loss"):
        assert furthest(before[curve], after[curve]) < 1e-5
    assert max(float((w - others[name]).abs().max()) for name, w in weights.items()) < 1e-5
    best = checkpoint("best", root=workplace / "fsdp2")
    run(workplace, "predict", "--ckpt_path", str(best), "--prompt", "Once", "--max_new_tokens", "3")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--trainer.devices", "auto"), "--trainer.devices 2"),
        (("--trainer.devices", "1", "--model.compile", "true"), "without compiling"),
        (("--trainer.devices", "1", "--model.optimizer.name", "muon"), "AdamW"),
    ],
)
def test_what_sharding_excludes_is_explained(workplace, words, expected):
    done = subprocess.run(
        [*SLM, *FIT, "--trainer.strategy", "fsdp2", *words],
        cwd=workplace, env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


# ---- ended together -----------------------------------------------------------------------

ENDLESS = ("--trainer.max_steps", "100000", "--val_interval", "100000", "--save_interval", "20")


def children(pid):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(word) for word in listed.stdout.split()]


def is_running(pid):
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip() not in ("", "Z", "Zl", "ZN")


def end_one(workplace, rank, number):
    """Sends a signal to one of two processes of a run, and waits until both have ended."""
    last = checkpoint("last", root=workplace)
    with (workplace / "err.txt").open("w+") as err:
        process = subprocess.Popen(
            [*SLM, *FIT, *TWO, *ENDLESS], cwd=workplace, env=ENV, stdout=err, stderr=err
        )
        try:
            while not last.exists():
                assert process.poll() is None, (workplace / "err.txt").read_text()
                time.sleep(0.05)
            (other,) = children(process.pid)
            os.kill(other if rank else process.pid, number)
            process.wait(timeout=30)
            deadline = time.monotonic() + 30
            while is_running(other) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not is_running(other)
        finally:
            process.kill()
            process.wait()
        return process.returncode, (workplace / "err.txt").read_text(), open_checkpoint(last).step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_either_process_stops_both(workplace, rank):
    status, err, step = end_one(workplace, rank, signal.SIGTERM)
    assert status == 143, err
    assert f"Interrupted at step {step:,}. To continue: slm fit --ckpt_path last" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_words(workplace, rank):
    status, err, step = end_one(workplace, rank, signal.SIGKILL)
    assert status == (1 if rank else -signal.SIGKILL), err
    who = "process 1 of 2 was ended by SIGKILL" if rank else "the first process of this run has"
    assert who in err
    assert "Traceback" not in err
    assert step % 20 == 0
    more = ("--trainer.max_steps", str(step + 4), "--val_interval", "1000")
    run(workplace, "fit", "--ckpt_path", "last", *more)


# ---- who starts the processes -------------------------------------------------------------

JOB = {
    "SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "4",
}  # fmt: skip


def test_torchrun_starts_them(workplace):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run(workplace, *FIT, *TWO, command=[*launch, "-m", "slm.cli"])
    assert open_checkpoint(checkpoint("last", root=workplace)).step == 12
    runs = [run.name for run in (workplace / "lightning_logs").iterdir()]
    assert runs == ["version_0"]


def test_variables_left_over_from_a_slurm_job_do_no_harm(workplace):
    run(workplace, *FIT, *TWO, env=ENV | JOB)
    assert open_checkpoint(checkpoint("last", root=workplace)).step == 12


@pytest.mark.parametrize(
    ("variables", "rank", "plugin"),
    [
        ({}, 0, []),
        ({"RANK": "3", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, 3, []),
        ({"LOCAL_RANK": "1"}, 1, []),
        (JOB | {"SLURM_PROCID": "2"}, 0, ["LightningEnvironment"]),
        (JOB | {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, 2, ["SLURMEnvironment"]),
        (JOB | {"SLURM_STEP_NUM_TASKS": "1"}, 0, ["LightningEnvironment"]),
        (JOB | {"RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, 1, []),
    ],
)
def test_which_process_this_is(monkeypatch, variables, rank, plugin):
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC", "RANK", "LOCAL_RANK")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank
    found = cluster_environments()
    assert [type(each).__name__ for each in found] == plugin
    assert not any(getattr(each, "auto_requeue", False) for each in found)
