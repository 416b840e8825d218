"""Checkpoints that were made to do harm, cut off, or are something else: refused, and not run."""

import contextlib
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checkpoint, refuse

from slm.errors import UserError
from slm.training.checkpoint import open_checkpoint


class Touch:
    """A pickle that calls a function with a word."""

    def __init__(self, function, word):
        self.function, self.word = function, word

    def __reduce__(self):
        return self.function, (self.word,)


def payloads(marker):
    """Objects whose unpickling would leave a file behind."""
    import os
    import subprocess

    return {
        "os.system": Touch(os.system, f"touch {marker}"),
        "eval": Touch(eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": Touch(exec, f"open({str(marker)!r}, 'w').close()"),
        "subprocess": Touch(subprocess.check_output, ["touch", str(marker)]),
        "numpy": np.array([Touch(os.system, f"touch {marker}")], dtype=object),
    }


KINDS = ("os.system", "eval", "exec", "subprocess", "numpy")
WAYS = ("alone", "within a whole checkpoint", "an old pickle")


def write_hostile(path, whole, kind, way):
    """Writes a checkpoint with a payload, and returns what it would leave behind."""
    marker = path.parent / "ran"
    payload = payloads(marker)[kind]
    if way == "alone":
        torch.save(payload, path)
    elif way == "an old pickle":
        path.write_bytes(pickle.dumps({"state_dict": payload}))
    else:
        contents = torch.load(whole, weights_only=True)
        contents["optimizer_states"].append(payload)
        contents["hyper_parameters"]["gpt"]["dropout"] = payload
        torch.save(contents, path)
    return marker


VERBS = {
    "fit": ("fit", "--config", "tiny.yaml", "--ckpt_path", "FILE"),
    "resume": ("fit", "--ckpt_path", "last", "--trainer.default_root_dir", "ROOT"),
    "fine-tune": ("fit", "--config", "tiny.yaml", "--model.init_from", "FILE"),
    "validate": ("validate", "--ckpt_path", "FILE"),
    "test": ("test", "--ckpt_path", "FILE"),
    "newest": ("validate", "--trainer.default_root_dir", "ROOT"),
    "predict": ("predict", "--ckpt_path", "FILE", "--prompt", "Once"),
    "evaluate": ("evaluate", "--ckpt_path", "FILE"),
    "plot": ("plot", "RUN"),
    "report": ("report", "RUN"),
    "info": ("info", "FILE"),
    "bench": ("bench", "generate", "--ckpt_path", "FILE"),
    "prepare": ("prepare", "--config", "tiny.yaml", "--data.tokenizer", "FILE"),
    "tokenizer": ("fit", "--config", "tiny.yaml", "--data.tokenizer", "FILE"),
}
TOLERANT = {"plot", "report"}
"""These leave out what they cannot read, and may show the rest."""


def command(verb, root):
    run = root / "lightning_logs" / "version_0"
    places = {"FILE": run / "checkpoints" / "best.ckpt", "ROOT": root, "RUN": run}
    return [str(places.get(word, word)) for word in VERBS[verb]]


@pytest.fixture
def hostile(trained, workplace):
    """Makes a run whose checkpoints carry a payload; returns its root and the file it leaves."""

    def make(kind, way):
        root = workplace / "there"
        shutil.copytree(trained / "lightning_logs", root / "lightning_logs")
        paths = [checkpoint(name, root=root) for name in ("best", "last")]
        whole = checkpoint("best", root=trained)
        markers = [write_hostile(path, whole, kind, way) for path in paths]
        return root, markers[0]

    return make


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_payloads_would_work(trained, tmp_path, kind, way):
    """Else the tests below would prove nothing."""
    path = tmp_path / "hostile.ckpt"
    marker = write_hostile(path, checkpoint("best", root=trained), kind, way)
    if way == "an old pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("kind", "way"), list(zip(KINDS, (*WAYS, *WAYS), strict=False)))
def test_no_verb_runs_a_payload(slm, hostile, verb, kind, way):
    root, marker = hostile(kind, way)
    result = slm(*command(verb, root))
    assert not marker.exists()
    assert "Traceback" not in result.err
    if verb not in TOLERANT or result.status:
        refuse(result)


def test_a_checkpoint_cut_anywhere_is_refused(trained, tmp_path):
    whole = checkpoint("best", root=trained).read_bytes()
    path = tmp_path / "cut.ckpt"
    random_places = random.Random(1)
    for length in (0, 1, len(whole) - 1, *random_places.sample(range(len(whole)), 50)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.ckpt is not a checkpoint, or an incomplete one"):
            open_checkpoint(path)


@pytest.mark.parametrize("verb", ["resume", "predict", "fine-tune", "info", "bench"])
def test_a_cut_checkpoint_is_refused_by_each_verb(slm, trained, workplace, verb):
    root = workplace / "there"
    shutil.copytree(trained / "lightning_logs", root / "lightning_logs")
    for name in ("best", "last"):
        path = checkpoint(name, root=root)
        path.write_bytes(path.read_bytes()[:-1000])
    refuse(slm(*command(verb, root)), "an incomplete one")


def test_flipped_bits_are_no_crash(trained, tmp_path):
    whole = bytearray(checkpoint("best", root=trained).read_bytes())
    path = tmp_path / "flipped.ckpt"
    places = random.Random(2)
    for _ in range(50):
        damaged = bytearray(whole)
        for place in places.sample(range(len(whole)), 3):
            damaged[place] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):  # a flipped weight is only a wrong weight
            open_checkpoint(path)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("Once upon a time"),
    "zip": write_zip,
    "safetensors": lambda path: path.write_bytes((8).to_bytes(8, "little") + b"{}      "),
    "list": lambda path: torch.save([1, 2], path),
    "dictionary": lambda path: torch.save({"state_dict": {}}, path),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_refused(slm, workplace, kind):
    path = Path("foreign.ckpt")
    FOREIGN[kind](path)
    refuse(slm("predict", "--ckpt_path", path, "--prompt", "Once"), "foreign.ckpt")
    refuse(slm("info", path), "foreign.ckpt")
