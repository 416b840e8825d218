"""Whether damage is noticed: at once, cheaply, and in full."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import checkpoint, make_stories, write_stories

from slm.data.corpus import Corpus
from slm.data.manifest import SPLITS, Manifest, checksum
from slm.data.preparation import ensure_prepared, prepare
from slm.data.tokenizer import Tokenizer
from slm.data.verification import check_touched, verify
from slm.errors import UserError


@pytest.fixture
def corpus(stories_txt, tmp_path):
    return Corpus(str(stories_txt), str(tmp_path / "data"), "bpe", 300, validation_share=0.2)


@pytest.fixture
def prepared(corpus):
    return ensure_prepared(corpus)


def edit(folder, change):
    """Changes the manifest."""
    path = folder / "manifest.json"
    plain = json.loads(path.read_text())
    del plain["checksum"]
    change(plain)
    path.write_text(json.dumps(plain | {"checksum": checksum(plain)}))


def flip(path, offset=100):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def problem_of(folder):
    """What verification finds; "" if nothing."""
    try:
        verify(folder)
    except UserError as error:
        return error.found
    return ""


def replace_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def append(path, data):
    path.write_bytes(path.read_bytes() + data)


def foreign_tokenizer(folder):
    """Another vocabulary of the same size."""
    other = write_stories(
        folder.parent / "other.txt", make_stories(300, seed=9)[::2] + ["zebra"] * 9
    )
    corpus = Corpus(str(other), str(folder.parent / "b"), "bpe", 300, validation_share=0.2)
    path = prepare(corpus, folder.parent / "b") and folder.parent / "b" / "tokenizer.json"
    assert path.read_bytes() != (folder / "tokenizer.json").read_bytes()
    shutil.copyfile(path, folder / "tokenizer.json")


DAMAGE = {
    "a flipped byte of train": (lambda f: flip(f / "train.bin"), r"train\.bin has been changed"),
    "a flipped byte of validation": (
        lambda f: flip(f / "validation.bin"),
        r"validation\.bin has been changed",
    ),
    "a flipped byte of the tokenizer": (
        lambda f: flip(f / "tokenizer.json", 200),
        r"tokenizer\.json|vocabulary with SHA-256",
    ),
    "a cut file": (lambda f: os.truncate(f / "train.bin", 1000), r"train\.bin has 1,000 bytes"),
    "an empty file": (lambda f: os.truncate(f / "train.bin", 0), r"train\.bin has 0 bytes"),
    "a longer file": (lambda f: append(f / "train.bin", b"12"), r"train\.bin has"),
    "a missing file": (
        lambda f: (f / "validation.bin").unlink(),
        r"validation\.bin does not exist",
    ),
    "a missing tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json does not"),
    "a foreign tokenizer": (foreign_tokenizer, r"tokenizer\.json contains a bpe vocabulary of 300"),
    "an old format version": (
        lambda f: edit(f, lambda m: m.update(format_version=1)),
        "prepared in format version 1",
    ),
    "a future format version": (
        lambda f: edit(f, lambda m: m.update(format_version=99)),
        "prepared in format version 99",
    ),
    "a manifest cut short": (lambda f: (f / "manifest.json").write_text("{"), "be understood"),
    "a manifest of something else": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "be underst",
    ),
    "a manifest changed by hand": (
        lambda f: replace_text(f / "manifest.json", '"stories": 1', '"stories": 2'),
        r"manifest\.json has been changed",
    ),
    "the other split's file": (
        lambda f: shutil.copyfile(f / "validation.bin", f / "train.bin"),
        r"train\.bin has",
    ),
}
EACH = pytest.mark.parametrize("kind", DAMAGE)


@EACH
def test_verification_names_the_damage(slm, prepared, kind):
    damage, message = DAMAGE[kind]
    damage(prepared)
    with pytest.raises(UserError, match=message) as error:
        verify(prepared)
    assert f"remove the folder {prepared}" in error.value.remedy
    result = slm("info", prepared, "--verify")
    assert result.status == 2
    assert str(error.value) in result.err
    assert "Traceback" not in result.err


@EACH
def test_training_refuses_damaged_data(slm, workplace, kind):
    assert slm("prepare", "--config", "tiny.yaml").status == 0
    damage, message = DAMAGE[kind]
    folder = Path("data/stories-bpe300")
    damage(folder)
    result = slm("fit", "--config", "tiny.yaml")
    assert result.status == 2, result.err
    with pytest.raises(UserError, match=message) as error:
        verify(folder)
    assert str(error.value) in result.err, "in the same words"
    assert "Traceback" not in result.err
    assert not checkpoint().exists()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("stories", "contains {:,} stories"),
        ("bytes", "contains {:,} bytes"),
    ],
)
def test_counts_that_do_not_fit_the_file_are_named(prepared, what, message):
    right = getattr(Manifest.load(prepared).splits["validation"], what)
    edit(prepared, lambda m: m["splits"]["validation"].update({what: right + 1}))
    with pytest.raises(UserError, match=message.format(right)):
        verify(prepared)


def test_ids_beyond_the_vocabulary_are_named(prepared):
    ids = np.fromfile(prepared / "train.bin", "<u2")
    ids[7] = 300
    ids.tofile(prepared / "train.bin")
    digest = hashlib.sha256((prepared / "train.bin").read_bytes()).hexdigest()
    edit(prepared, lambda m: m["splits"]["train"].update(sha256=digest))
    with pytest.raises(UserError, match="contains the id 300"):
        verify(prepared)


def test_untouched_files_are_not_read_at_every_start(prepared, monkeypatch):
    manifest = Manifest.load(prepared)
    check_touched(prepared, manifest)  # all may have been written within the clock's grain
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read once more"))
    check_touched(prepared, manifest)


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_copy_is_checked_once(prepared, tmp_path, monkeypatch, keep_times):
    """Whether or not the copies pretend to be as old as the originals."""
    copy, checked, whole = tmp_path / "copy", [], hashlib.file_digest
    copy.mkdir()
    for name in ("manifest.json", "tokenizer.json", "validation.bin", "train.bin"):
        (shutil.copy2 if keep_times else shutil.copyfile)(prepared / name, copy / name)
        time.sleep(0.02)
    monkeypatch.setattr(
        "hashlib.file_digest", lambda file, name: checked.append(file.name) or whole(file, name)
    )
    manifest = Manifest.load(copy)
    check_touched(copy, manifest)
    assert sorted(checked) == [str(copy / "train.bin"), str(copy / "validation.bin")]
    time.sleep(0.02)
    check_touched(copy, manifest)
    assert len(checked) == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the last change of place")
def test_another_file_moved_into_place_is_noticed_though_it_is_older(corpus, tmp_path):
    folder = ensure_prepared(corpus)
    time.sleep(0.02)
    check_touched(folder, Manifest.load(folder))
    time.sleep(0.02)
    shutil.copyfile(folder / "train.bin", tmp_path / "other.bin")
    flip(tmp_path / "other.bin")
    os.utime(tmp_path / "other.bin", (0, 0))
    (tmp_path / "other.bin").replace(folder / "train.bin")
    with pytest.raises(UserError, match=r"train\.bin has been changed"):
        ensure_prepared(corpus)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_any_flipped_bit_of_what_describes_the_data_is_named(prepared, name):
    data = (prepared / name).read_bytes()
    before = Tokenizer.load(prepared / "tokenizer.json").to_plain()
    passed = 0
    for offset in range(0, len(data), 7):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset % 7)
        (prepared / name).write_bytes(changed)
        if found := problem_of(prepared):
            assert name in found or "format version" in found
        else:  # base64 has bits that stand for nothing
            assert Tokenizer.load(prepared / "tokenizer.json").to_plain() == before
            passed += 1
    assert passed <= (0 if name == "manifest.json" else len(data) / 7 / 10)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train.bin"])
def test_files_that_may_not_be_read_are_named(slm, prepared, name):
    (prepared / name).chmod(0)
    result = slm("info", prepared)
    assert result.status == 2
    assert name in result.err
    assert "Traceback" not in result.err


def test_what_was_prepared_is_whole(prepared):
    manifest = verify(prepared)
    assert set(manifest.splits) == set(SPLITS)
    manifest.save(prepared)
    assert Manifest.load(prepared) == manifest
