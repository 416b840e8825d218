"""Disks that are full or read-only, and numbers that are not finite: what was there stays."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import checkpoint, refuse

from slm.training.checkpoint import open_checkpoint
from slm.training.checkpoint_io import AtomicCheckpointIO
from slm.training.finite import FiniteGradients
from slm.training.module import StoryModel
from slm.training.run_logger import LastingEvents

MORE = ("--ckpt_path", "last", "--trainer.max_steps", "24")


@pytest.fixture
def resumable(trained, workplace):
    """A finished run of 12 steps, in the workplace."""
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    shutil.copytree(trained / "data", workplace / "data")
    return workplace


# ---- disks --------------------------------------------------------------------------------


def fill(monkeypatch, name):
    """From now on there is no room for a file."""
    original = torch.save

    def save(contents, path, *arguments):
        if name not in str(path):
            return original(contents, path, *arguments)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", save)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_no_room_for_a_checkpoint_stops_and_keeps_the_one_before(slm, resumable, monkeypatch, name):
    before = {each: checkpoint(each).read_bytes() for each in ("last", "best")}
    fill(monkeypatch, name)
    refuse(slm("fit", *MORE), name, "No space left", "MB are free", "--on_save_error continue")
    kept = name.removesuffix(".ckpt")
    assert checkpoint(kept).read_bytes() == before[kept]
    assert not list(resumable.rglob("*.tmp-*"))
    assert open_checkpoint(checkpoint("last")).step in (12, 20)


def test_no_room_for_a_checkpoint_is_only_said_on_demand(slm, resumable, monkeypatch):
    before = checkpoint("best").read_bytes()
    with monkeypatch.context() as context:
        fill(context, "best.ckpt")
        result = slm("fit", *MORE, "--on_save_error", "continue")
    assert result.status == 0, result.err
    assert result.err.count("Training continues.") == 2
    assert checkpoint("best").read_bytes() == before
    assert open_checkpoint(checkpoint("last")).step == 24
    # The loss to beat is that of the file that is there, not of those that could not be written.
    assert slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "30").status == 0
    assert checkpoint("best").read_bytes() != before


def test_what_failed_is_cleaned_up(tmp_path, monkeypatch):
    writer = AtomicCheckpointIO("continue")
    path = tmp_path / "a" / "last.ckpt"
    writer.save_checkpoint({"a": 1}, path)
    assert not writer.failed
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "bad")))
    writer.save_checkpoint({"a": 2}, path)
    assert writer.failed
    assert torch.load(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_run_outlives_its_curves(tmp_path, capsys):
    class Full:
        def add_event(self, event):
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = close = add_event

    events = LastingEvents(Full(), tmp_path)
    for _ in range(3):
        events.add_event(None)
    assert capsys.readouterr().err.count("no more curves") == 1


SMALL_DISK = """
set -e
mount -t tmpfs -o size={size}k none {folder}
cd {folder}
exec {python} -m slm.cli fit --config {config} --data.root {data} {words}
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a tmpfs")
@pytest.mark.parametrize(
    "size", [8, 300, 620, *(pytest.param(size, marks=pytest.mark.slow) for size in (40, 500, 800))]
)
def test_a_disk_that_is_full_at_any_write(trained, tmp_path, size):
    """A disk of `size` KiB: too small for the folder, the config, the first or a later file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = SMALL_DISK.format(
        size=size, folder=folder, python=sys.executable, config=trained / "tiny.yaml",
        data=trained / "data", words=f"--data.source {trained / 'stories.txt'} --report true",
    )  # fmt: skip
    after = f"s=$?; cd {folder}; find . -name '*.ckpt*'; cp -r . ../kept; exit $s"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", f"({script.strip()}); {after}"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("may not mount")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "MB are free" in done.stderr
    assert "tmp-" not in done.stdout
    for path in (tmp_path / "kept").rglob("*.ckpt"):
        assert open_checkpoint(path).step in (10, 12)


READ_ONLY = """
set -e
mount -t tmpfs none {folder}
cp -r {trained}/. {folder}
mount -o remount,ro {folder}
cd {folder}
{python} -m slm.cli fit {words}
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a tmpfs")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--ckpt_path last --trainer.max_steps 24", "version_0 cannot be locked: Read-only"),
        ("--config tiny.yaml", "the run's folder cannot be created under"),
    ],
)
def test_a_read_only_folder_is_explained(trained, tmp_path, words, expected):
    folder = tmp_path / "disk"
    folder.mkdir()
    script = READ_ONLY.format(folder=folder, trained=trained, python=sys.executable, words=words)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("may not mount")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert expected in done.stderr


# ---- numbers ------------------------------------------------------------------------------


def poison(monkeypatch, what, step):
    """Puts a NaN into the loss, a gradient or a weight of a step, counted from 1."""
    original = StoryModel.training_step
    backward = StoryModel.on_after_backward

    def training_step(self, batch, batch_idx):
        bad = self.trainer.global_step + 1 == step
        if bad and what == "weight":
            with torch.no_grad():
                self.model.norm.weight[0] = float("nan")
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if bad and what == "loss" else loss

    def on_after_backward(self):
        backward(self)
        if self.trainer.global_step + 1 == step and what == "gradient":
            self.model.norm.weight.grad[0] = float("inf")

    monkeypatch.setattr(StoryModel, "training_step", training_step)
    monkeypatch.setattr(StoryModel, "on_after_backward", on_after_backward)


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_stops_at_the_step_that_is_not_finite(slm, monkeypatch, what, precision):
    poison(monkeypatch, what, 7)
    options = ("--save_interval", "4", "--trainer.precision", precision)
    refuse(slm("fit", "--config", "tiny.yaml", *options), "at step 7", "skip_nonfinite")
    last = open_checkpoint(checkpoint("last"))
    assert last.step == (4 if what == "weight" else 6)
    for tensor in last.contents["state_dict"].values():
        assert tensor.isfinite().all()


def test_a_step_that_is_not_finite_is_left_out_on_demand(slm, monkeypatch):
    poison(monkeypatch, "gradient", 7)
    options = ("--model.skip_nonfinite", "true", "--trainer.log_every_n_steps", "1")
    result = slm("fit", "--config", "tiny.yaml", *options)
    assert result.status == 0, result.err
    assert result.err.count("Skipped    step 7: its gradient is not finite") == 1
    assert open_checkpoint(checkpoint("last")).step == 12


def test_skipping_has_an_end(slm, monkeypatch):
    poison(monkeypatch, "weight", 2)
    options = ("--model.skip_nonfinite", "true", "--trainer.max_steps", "30")
    rare = ("--val_interval", "100", "--save_interval", "100")
    refuse(slm("fit", "--config", "tiny.yaml", *options, *rare), "at step 12")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_found_a_step_later_and_named():
    from slm.errors import UserError

    finite = FiniteGradients(skip=False)
    for step, norm in enumerate((1.0, float("nan")), start=1):
        assert finite.check(torch.tensor(norm, device="cuda"), step)
    with pytest.raises(UserError, match="at step 2"):
        finite.check(torch.tensor(1.0, device="cuda"), 3)
