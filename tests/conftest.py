"""Shared pieces: a tiny corpus, and the real command run in an empty folder."""

import contextlib
import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pyarrow
import pyarrow.parquet
import pytest

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ["SLM_CACHE_DIR"] = ""  # nothing is compiled in the background

import hypothesis
import torch

from slm import hardware
from slm.cli import main
from slm.model import gpt

# The networks of these tests are tiny; threads would spend their time waiting for one another.
torch.set_num_threads(1)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

needs_bf16 = pytest.mark.skipif(
    not hardware.packs_bfloat16(), reason="oneDNN has no bfloat16 layers for this CPU"
)
WEIGHTS = ["fp32", pytest.param("bf16", marks=needs_bf16), "int8"]
"""What `--weights` takes on a CPU."""

TINY = """\
val_interval: 10
save_interval: 10
report: false
model:
  gpt: {block_size: 16, vocab_size: 300, n_layer: 2, n_head: 2, n_embd: 16, dropout: 0.0}
  optimizer: {lr: 0.01, warmup_steps: 4}
data:
  source: stories.txt
  tokenizer: bpe
  vocab_size: 300
  batch_size: 4
  validation_share: 0.2
trainer:
  max_steps: 12
  accelerator: cpu
  log_every_n_steps: 2
"""


def make_stories(count, seed=0):
    """Short texts that a tiny model can learn something of."""
    rng = random.Random(seed)
    animals, things = ["cat", "dog", "bird", "fox"], ["ball", "kite", "boat", "hat"]
    return [
        f"Once upon a time a {rng.choice(animals)} had a {rng.choice(things)}.\n"
        f"It was happy {rng.randrange(1000)} times."
        for _ in range(count)
    ]


def write_stories(path, stories, column="text"):
    """Writes stories in the format that the path's ending names, and returns the path."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    if plain.suffix == ".txt":
        plain.write_text("\n<|endoftext|>\n".join([*stories, ""]), encoding="utf-8")
    elif plain.suffix == ".jsonl":
        lines = [json.dumps({"id": 1, column: story}) for story in stories]
        plain.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    elif plain.suffix == ".csv":
        with plain.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["id", column], *([1, story] for story in stories)])
    else:
        table = pyarrow.table({"id": [1] * len(stories), column: stories})
        pyarrow.parquet.write_table(table, plain)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.fixture
def stories_txt(tmp_path):
    """A file of 200 stories."""
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(make_stories(200)), encoding="utf-8")
    return path


@pytest.fixture
def workplace(tmp_path, monkeypatch, stories_txt):
    """An empty folder to run commands in, with stories and a config that trains in a second."""
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Result:
    """What a command left: its status and what it printed."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def slm(workplace):
    """Runs a command line through `main`, in the workplace."""

    def run(*words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(word) for word in words])
            except SystemExit as exit_:
                status = exit_.code
        return Result(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def servers_end_at_once(monkeypatch):
    """`slm serve` and `slm demo` do all but wait for clients; test_serve and test_demo do that."""
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    monkeypatch.setattr("slm.serving.demo.make_demo", MagicMock())
    monkeypatch.setattr("slm.serving.demo.launch", MagicMock(side_effect=KeyboardInterrupt))


def checkpoint(name="last", version=0, root="."):
    """Path of a run's checkpoint."""
    return Path(root) / "lightning_logs" / f"version_{version}" / "checkpoints" / f"{name}.ckpt"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A trained run in a folder of its own, made by the real command in a process of its own."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(make_stories(200)))
    done = subprocess.run(
        [sys.executable, "-m", "slm.cli", "fit", "--config", "tiny.yaml"],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@contextlib.contextmanager
def plain_attention():
    """Networks compute attention by the definition in `slm.model.reference`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt, "_compiled_is_faster", lambda queries: True)
        yield


def refuse(result, *expected):
    """A mistake: status 2, found, expected and remedy, and no traceback."""
    assert result.status == 2, (result.status, result.out, result.err)
    assert "Traceback" not in result.err
    for part in ("slm: error:", "expected:", "remedy:", *expected):
        assert part in result.err, result.err
