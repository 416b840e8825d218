"""The curves of a run, and TensorBoard's view of a run."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from torch.utils.tensorboard import SummaryWriter

from slm.reports.figures.curves import read_run


@pytest.fixture
def run(tmp_path):
    """A run's folder, its curves written in two pieces as a resumed run's are."""
    folder = tmp_path / "lightning_logs" / "version_0"
    for piece, purge in ((range(0, 40, 10), None), (range(30, 70, 10), 30)):
        writer = SummaryWriter(folder, purge_step=purge, filename_suffix=f".{piece.start}")
        for step in piece:
            writer.add_scalar("train_loss", 5 - step / 20, step)
            writer.add_scalar("val_loss", 5.5 - step / 20, step)
        writer.close()
        time.sleep(1.1)  # the files' names count seconds
    return folder


def test_curves_of_a_resumed_run_are_one_line(run):
    curves = read_run(run).scalars
    assert set(curves) == {"train_loss", "val_loss"}
    steps, values = curves["train_loss"]
    assert steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert values == pytest.approx([5 - step / 20 for step in steps])


def test_tensorboard_serves_the_curves(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", run.parent, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    tags = json.load(answer)
            except (urllib.error.URLError, ConnectionError):
                continue
            if tags:
                break
        assert set(tags["version_0"]) == {"train_loss", "val_loss"}
    finally:
        server.terminate()
        server.wait(10)
