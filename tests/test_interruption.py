"""A signal to stop takes effect between two micro-batches, and nowhere else."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import checkpoint

from slm.errors import Stopped
from slm.signals import LastingStream, handled_by, raise_stopped
from slm.training.callbacks.interruption import Interruption
from slm.training.checkpoint import open_checkpoint

ALONE = SimpleNamespace(world_size=1)
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_the_first_is_noted_and_raised_at_the_next_batch(capsys, name):
    number = signal.Signals[name]
    with Interruption() as interruption:
        interruption.on_train_batch_start(ALONE)
        press(number)
        assert f"{name} received: stopping before the next micro-batch" in capsys.readouterr().err
        assert signal.getsignal(number) is signal.SIG_DFL, "the second one ends the process"
        with pytest.raises(Stopped, match=name) as stopped:
            interruption.on_validation_batch_start(ALONE)
    assert stopped.value.number == number


@posix
def test_a_signal_while_the_processes_agree_counts_in_the_next_round(monkeypatch):
    """Both have to stop at the same micro-batch, so this round is over; but it is not lost."""
    rounds = []

    def all_reduce(agreed, *_, **__):
        rounds.append(int(agreed))
        if len(rounds) == 1:
            press(signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    two = SimpleNamespace(world_size=2)
    with Interruption() as interruption:
        interruption.on_train_batch_start(two)
        with pytest.raises(Stopped, match="SIGTERM"):
            interruption.on_train_batch_start(two)
    assert rounds == [0, signal.SIGTERM]


def test_where_no_batches_run_it_is_raised_at_once():
    with Interruption() as interruption, pytest.raises(Stopped):
        press()
    with Interruption() as interruption:
        interruption.on_train_batch_start(ALONE)
        interruption.on_train_end()
        with pytest.raises(Stopped):
            press()


def test_the_old_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


@posix
def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption, handled_by(raise_stopped):
            interruption.on_train_batch_start(ALONE)
            press(signal.SIGHUP)
            interruption.on_train_batch_start(ALONE)
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- the real command ---------------------------------------------------------------------

FIT = [sys.executable, "-m", "slm.cli", "fit", "--config", "tiny.yaml"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LONG = ("--trainer.max_steps", "100000", "--val_interval", "20", "--save_interval", "100000")
VALIDATION = (*LONG, "--data.validation_share", "0.99", "--data.eval_batch_size", "1")
"""A validation takes seconds, training between two of them next to nothing."""
REPORT = ("--trainer.max_steps", "4", "--report", "true")
PREPARATION = (
    "--data.source",
    "builtin",
    "--data.vocab_size",
    "4096",
    "--model.gpt.vocab_size",
    "4096",
)
STAGES = {
    "training": (LONG, "step     20", "To continue: slm fit --ckpt_path last"),
    "validation": (VALIDATION, "step     20", "To continue: slm fit --ckpt_path last"),
    "report": (REPORT, "step      4", "slm: stopped"),
    "preparation": (PREPARATION, "Learning", "Interrupted"),
}


QUICK = [("SIGTERM", stage) for stage in STAGES] + [("SIGHUP", "training"), ("SIGINT", "training")]
REST = [(name, stage) for name in ("SIGHUP", "SIGINT") for stage in STAGES if stage != "training"]


@posix
@pytest.mark.parametrize(
    ("name", "stage"), [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in REST)]
)
def test_a_signal_loses_nothing(workplace, name, stage):
    options, begun, expected = STAGES[stage]
    with subprocess.Popen(
        [*FIT, *options], cwd=workplace, env=ENV, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            for line in process.stderr:
                if line.startswith(begun):
                    break
            time.sleep(0.2)
            process.send_signal(signal.Signals[name])
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.Signals[name], err
    assert "Traceback" not in err
    assert expected in err, err
    assert f"slm: stopped by {name}" in err
    if stage == "preparation":
        assert not (workplace / "lightning_logs").exists()
        return
    last = open_checkpoint(checkpoint("last", root=workplace))
    assert last.step >= (4 if stage == "report" else 20)
    assert not list(workplace.rglob("*.tmp-*"))


ENDLESS_STEP = """
import sys, time
from slm.cli import main
from slm.training.module import StoryModel

def step(*_):
    print("in a step", file=sys.stderr)
    time.sleep(60)

StoryModel.training_step = step
sys.exit(main(["fit", "--config", "tiny.yaml"]))
"""


@posix
def test_a_second_signal_ends_the_run_at_once(workplace):
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS_STEP], cwd=workplace, env=ENV, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            for expected in ("in a step", "SIGTERM received"):
                assert any(line.startswith(expected) for line in process.stderr)
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGTERM


# ---- readers that go away -----------------------------------------------------------------


def test_a_stream_outlives_its_reader():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        stream = LastingStream(pipe)
        assert stream.write("heard\n") == 6
        stream.flush()
        os.close(reading)
        for _ in range(3):
            assert stream.write("unheard\n") == 8
            stream.flush()
        assert not stream.isatty()


@posix
def test_training_outlives_the_reader_of_its_progress(workplace):
    """`slm fit … 2>&1 | head -1`."""
    with subprocess.Popen(
        [*FIT, "--val_interval", "2"], cwd=workplace, env=ENV, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert open_checkpoint(checkpoint("last", root=workplace)).step == 12
    assert (checkpoint(root=workplace).parent.parent / "loss.png").exists()
