"""A run's folder belongs to one process, and what it records decides which run is the newest."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from conftest import checkpoint, make_stories, refuse, write_stories

from slm.errors import UserError
from slm.files import replacing
from slm.training import runs
from slm.training.checkpoint import open_checkpoint
from slm.training.runs import Run, RunClaim

FIT = [sys.executable, "-m", "slm.cli", "fit", "--config", "tiny.yaml"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def test_of_two_claims_each_gets_its_own_folder(tmp_path):
    with RunClaim() as one, RunClaim() as other:
        (one.create(tmp_path / "lightning_logs") / "a").touch()
        (other.create(tmp_path / "lightning_logs") / "a").touch()
    assert [run.name for run in sorted((tmp_path / "lightning_logs").iterdir())] == [
        "version_0",
        "version_1",
    ]


def test_version_numbers_are_not_used_again(tmp_path):
    for name in ("version_3", "version_10", "version_x", "notes"):
        (tmp_path / name).mkdir()
    with RunClaim() as claim:
        assert claim.create(tmp_path).name == "version_11"


def test_a_claim_of_which_nothing_came_leaves_no_folder(tmp_path):
    with RunClaim() as claim:
        claim.create(tmp_path / "lightning_logs")
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_PATIENCE", 0.1)
    with RunClaim() as one:
        folder = one.create(tmp_path)
        with RunClaim() as other, pytest.raises(UserError, match="another process is training"):
            other.resume(folder)
        (folder / "a").touch()
    with RunClaim() as other:
        other.resume(folder)


def test_without_locks_in_the_file_system_a_file_stands_for_one(tmp_path, monkeypatch):
    def refuse_lock(self):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse_lock)
    monkeypatch.setattr(runs, "_PATIENCE", 0.1)
    with RunClaim() as one:
        folder = one.create(tmp_path)
        assert (folder / "run.lock.soft").exists()
        with RunClaim() as other, pytest.raises(UserError, match=r"run\.lock\.soft"):
            other.resume(folder)
        (folder / "a").touch()
    with RunClaim() as other:
        other.resume(folder)


def test_two_trainings_at_once_are_two_whole_runs(workplace):
    for _ in range(2):
        processes = [
            subprocess.Popen(FIT, cwd=workplace, env=ENV, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    for version in range(4):
        assert open_checkpoint(checkpoint("last", version, workplace)).step == 12
        folder = checkpoint("last", version, workplace).parent.parent
        assert len(list(folder.glob("events*"))) == len(Run(folder).record()) == 1


def test_resuming_a_run_that_is_being_trained_is_refused(slm, trained, workplace, monkeypatch):
    monkeypatch.setattr(runs, "_PATIENCE", 0.1)
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    last = checkpoint("last")
    before = last.read_bytes()
    with RunClaim() as claim:
        claim.resume(last.parent.parent)
        refuse(slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "20"), "another process")
        assert slm("validate", "--ckpt_path", last).status == 0, "measuring disturbs nobody"
    assert last.read_bytes() == before


# ---- moved, copied and linked -------------------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "copied", "linked"])
def test_a_run_in_another_place_keeps_its_best(slm, trained, workplace, how):
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    shutil.copytree(trained / "data", workplace / "data")
    run, place = workplace / "lightning_logs" / "version_0", workplace / "elsewhere"
    (place / "lightning_logs").mkdir(parents=True)
    other = place / "lightning_logs" / "version_0"
    if how == "moved":
        run.rename(other)
    elif how == "copied":
        shutil.copytree(run, other)
    else:
        other.symlink_to(run)
    best = (other / "checkpoints" / "best.ckpt").read_bytes()
    spoil = ("--model.optimizer.lr", "5", "--model.optimizer.warmup_steps", "0")
    result = slm(
        "fit", "--ckpt_path", "last", "--trainer.default_root_dir", place,
        "--trainer.max_steps", "24", *spoil,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert open_checkpoint(other / "checkpoints" / "last.ckpt").step == 24
    assert (other / "checkpoints" / "best.ckpt").read_bytes() == best
    if how == "copied":
        assert open_checkpoint(run / "checkpoints" / "last.ckpt").step == 12


def test_a_root_in_a_config_is_where_the_run_is_looked_for(slm, trained, workplace):
    for root in (workplace, workplace / "there"):
        shutil.copytree(trained / "lightning_logs", root / "lightning_logs")
    shutil.copytree(trained / "data", workplace / "data")
    config = (workplace / "tiny.yaml").read_text() + "  default_root_dir: there\n"
    (workplace / "there.yaml").write_text(config)
    options = ("--config", "there.yaml", "--ckpt_path", "last", "--trainer.max_steps", "14")
    result = slm("fit", *options)
    assert result.status == 0, result.err
    assert open_checkpoint(checkpoint("last", root="there")).step == 14
    assert open_checkpoint(checkpoint("last")).step == 12


def test_a_moved_project_finds_its_data_again(slm, trained, workplace, monkeypatch):
    moved = workplace / "moved"
    shutil.copytree(trained, moved)
    source = moved / "lightning_logs" / "version_0" / "config.yaml"
    source.write_text(source.read_text().replace("stories.txt", "/gone/stories.txt"))
    (moved / "stories.txt").rename(moved / "renamed.txt")
    monkeypatch.chdir(moved)
    result = slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "14")
    assert result.status == 0, result.err
    assert "the same data, by SHA-256, are in" in result.err


def test_files_under_another_path_need_no_new_preparation(slm, trained, workplace):
    """A project that was moved with its stories; the manifest still names the old path."""
    shutil.copytree(trained / "data", workplace / "data")
    (workplace / "stories.txt").write_bytes((trained / "stories.txt").read_bytes())
    result = slm("prepare", "--config", "tiny.yaml")
    assert result.status == 0, result.err
    assert "Preparing" not in result.err


@pytest.mark.parametrize(
    ("words", "changed", "meaning"),
    [
        (("--data.batch_size", "2"), "batch_size 4 -> 2", "Steps have another size"),
        (("--seed_everything", "5"), "seed 1337 -> 5", "Windows come in another order"),
        (("--data.source", "other.txt"), "train.bin", "The stories differ"),
        (("--model.optimizer.lr", "1e-3"), "lr 0.01 -> 0.001", "it may jump"),
    ],
)
def test_what_changes_on_resuming_is_explained(slm, trained, workplace, words, changed, meaning):
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    write_stories(workplace / "other.txt", make_stories(150, seed=9))
    result = slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "14", *words)
    assert result.status == 0, result.err
    assert changed in result.err
    assert meaning in result.err


# ---- the newest ---------------------------------------------------------------------------


def make_run(root, name, started, seconds):
    folder = root / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    entry = {
        "started": started, "seconds": seconds, "first_step": 0, "last_step": 1, "tokens": 1,
        "machine": "", "device": "", "precision": "", "compiled": False, "joules": {},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps([entry]))
    return folder


def test_the_newest_is_the_one_whose_record_says_so(tmp_path):
    old = make_run(tmp_path, "version_1", "2026-01-01T10:00:00+00:00", 50)
    new = make_run(tmp_path, "version_0", "2026-01-01T10:00:00+00:00", 60)
    os.utime(old / "checkpoints" / "last.ckpt", (time.time() + 100, time.time() + 100))
    assert Run.find_all(tmp_path) == [Run(old), Run(new)]
    assert Run.newest_checkpoint(tmp_path, "last") == new / "checkpoints" / "last.ckpt"


def test_a_run_without_a_record_is_as_old_as_its_curves(tmp_path):
    recorded = make_run(tmp_path, "version_0", "2026-01-01T10:00:00+00:00", 50)
    (tmp_path / "version_1").mkdir()
    (tmp_path / "version_1" / "events.out.tfevents.1500000000.host.1.0").touch()
    assert Run.find_all(tmp_path) == [Run(tmp_path / "version_1"), Run(recorded)]
    assert Run(tmp_path / "version_1").last_active() == 1.5e9
    for name in ("version_10", "version_9"):
        make_run(tmp_path, name, "nonsense", 1)
    assert [run.folder.name for run in Run.find_all(tmp_path)[:2]] == ["version_9", "version_10"]


# ---- files ---------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_leftovers_of_a_killed_writer_are_cleaned_up(slm, trained, workplace):
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    shutil.copytree(trained / "data", workplace / "data")
    leftover = Path(f"{checkpoint('last')}.tmp-12345")
    leftover.write_bytes(b"half")
    assert slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "14").status == 0
    assert not leftover.exists()
