"""The compiled decode pass: what it equals, what it is kept for, and what happens without it."""

import json
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from conftest import WEIGHTS, needs_bf16

from slm import hardware
from slm.generation import SamplingOptions, compiled
from slm.generation.cache import KVCache
from slm.generation.compiled import (
    CompiledDecode,
    cache_folder,
    find_unit,
    unit_key,
    write_unit,
)
from slm.generation.decode import PlainDecode
from slm.generation.engine import Engine, TokenSequence
from slm.generation.quantization import for_inference
from slm.model import GPT, GPTConfig

CLASSIC = GPTConfig(
    block_size=130, vocab_size=90, n_layer=2, n_head=2, n_embd=36, dropout=0.2, bias=True
)
MODERN = GPTConfig(
    block_size=40, vocab_size=90, n_layer=2, n_head=2, n_embd=32, position="rotary",
    norm="rms", qk_norm=True, qk_gain=True, mlp="swiglu", tied=False,
)  # fmt: skip
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.02}

needs_compiler = pytest.mark.skipif(hardware.cpp_compiler() is None, reason="needs a C++ compiler")


def make_model(config, weights="fp32", seed=0):
    torch.manual_seed(seed)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return for_inference(model, weights, "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache for all tests of this module."""
    return tmp_path_factory.mktemp("units")


@pytest.fixture
def cache(folder, monkeypatch):
    monkeypatch.setenv("SLM_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_CACHE_DIR", str(tmp_path))
    return tmp_path


def make_decode(config, weights, batch_size, seed=0):
    decode = CompiledDecode(make_model(config, weights, seed), weights, batch_size)
    decode.build(wait=True)
    assert decode.ready
    return decode


@torch.inference_mode()
def read(decode, stories, goes=1):
    """Logits after stories of several lengths, which are read a token at a time."""
    cache = KVCache(decode.model.config, decode.rows(len(stories)))
    order = sorted(stories, key=len, reverse=True)
    found = {}
    for position in range(max(map(len, stories))):
        reading = [story for story in order if len(story) > position]
        logits = decode([story[position] for story in reading], cache)
        found |= {tuple(story): row for story, row in zip(reading, logits, strict=True)}
    return torch.stack([found[tuple(story)] for story in stories])


def some_stories(count, longest):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(90, (n,), generator=generator).tolist() for n in [longest, *lengths[1:]]]


CASES = [
    (CLASSIC, "int8", 16),
    (MODERN, "fp32", 4),
    pytest.param(MODERN, "bf16", 1, marks=needs_bf16),
]


@needs_compiler
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("config", "weights", "batch_size"), CASES)
def test_it_gives_the_plain_passes_logits(cache, monkeypatch, config, weights, batch_size):
    """Over more slots than are read at first, with the weights of another model than was built."""
    make_decode(config, weights, batch_size, seed=1)
    decode = make_decode(config, weights, batch_size)
    stories = some_stories(batch_size + batch_size // 2, config.block_size)
    plain = read(PlainDecode(decode.model), stories)
    monkeypatch.setattr(decode.model, "hidden", None)
    found = read(decode, stories)
    scale = plain.abs().max()
    torch.testing.assert_close(found / scale, plain / scale, atol=TOLERANCE[weights], rtol=0)


@needs_compiler
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("config", "weights", "batch_size"), CASES[:2])
def test_a_rows_logits_are_the_same_bits_in_any_company(cache, config, weights, batch_size):
    decode = make_decode(config, weights, batch_size)
    stories = some_stories(20, config.block_size)
    alone = torch.cat([read(decode, [story]) for story in stories])
    for count in (2, 4, 9, 20):
        assert torch.equal(read(decode, stories[:count]), alone[:count])


@needs_compiler
@pytest.mark.timeout(900)
def test_the_engine_generates_the_same_stories(cache):
    """Greedily, past the context, with stories that come and go."""
    decode = make_decode(MODERN, "fp32", 4)

    def generate(rows, way):
        options = SamplingOptions(temperature=0, max_new_tokens=50)
        batch = Engine(decode.model, 7, rows, way)
        stories = [TokenSequence([1 + n] * (1 + 5 * n), options) for n in range(5)]
        waiting = list(stories)
        while waiting or len(batch):
            while waiting and batch.free:
                batch.admit([waiting.pop(0)])
            batch.step()
        return [story.tokens for story in stories]

    expected = generate(3, None)
    assert [generate(rows, decode) for rows in (1, 3, 5)] == [expected] * 3


@needs_compiler
@pytest.mark.timeout(900)
def test_it_is_built_in_the_background_while_stories_are_generated(empty_cache, monkeypatch):
    popen = compiled.subprocess.Popen

    def start(args, **how):
        """At the usual priority: the other tests may leave no time for a lower one."""
        request = json.loads(args[-1]) | {"wait": True}
        return popen([*args[:-1], json.dumps(request)], **how)

    monkeypatch.setattr(compiled.subprocess, "Popen", start)
    config = replace(CLASSIC, n_layer=1, block_size=20)
    decode = CompiledDecode(make_model(config), "fp32")
    assert decode.build()
    until = time.monotonic() + 600
    while not decode.ready and time.monotonic() < until:
        plain = read(decode, [[1, 2, 3]])
        time.sleep(0.1)
    decode._builder.wait()
    monkeypatch.setattr(decode.model, "hidden", None)
    torch.testing.assert_close(read(decode, [[1, 2, 3]]), plain, atol=1e-4, rtol=0)
    later = CompiledDecode(decode.model, "fp32")
    assert later.ready
    assert not later.build(), "there is nothing to build"


def test_a_unit_is_used_only_for_what_it_was_built_for(monkeypatch):
    key = unit_key(CLASSIC, "fp32", 1)
    assert key == unit_key(CLASSIC, "fp32", 1) == unit_key(replace(CLASSIC, dropout=0), "fp32", 1)
    others = [
        unit_key(CLASSIC, "fp32", 4),
        unit_key(CLASSIC, "int8", 1),
        unit_key(replace(CLASSIC, bias=False), "fp32", 1),
    ]
    changes = [
        (torch, "__version__", "2.99"),
        (hardware, "cpu_identity", lambda: "another CPU"),
        (compiled, "_code", lambda: "another code"),
        (torch, "get_num_threads", lambda: 77),
    ]
    for owner, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            others.append(unit_key(CLASSIC, "fp32", 1))
    assert len({key, *others}) == 8


def test_the_code_is_that_of_the_network_and_of_generation(monkeypatch):
    before = compiled._code.__wrapped__()
    read_bytes = Path.read_bytes
    for name in ("gpt.py", "unit.py", "building.py"):
        with monkeypatch.context() as patch:
            patch.setattr(
                Path, "read_bytes", lambda path, n=name: read_bytes(path) + b"#" * (path.name == n)
            )
            assert compiled._code.__wrapped__() != before


def test_a_damaged_unit_is_removed(tmp_path):
    write_unit(tmp_path, "key", b"machine code")
    path = find_unit(tmp_path, "key")
    assert path.read_bytes() == b"machine code"
    assert find_unit(tmp_path, "another") is None
    path.write_bytes(b"machine cod")
    with pytest.raises(ValueError, match="damaged"):
        find_unit(tmp_path, "key")
    assert find_unit(tmp_path, "key") is None


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "unloadable"])
def test_a_unit_that_cannot_be_used_is_said_once_and_done_without(empty_cache, damaged):
    model, lines = make_model(MODERN), []
    key = unit_key(MODERN, "fp32", 1)
    write_unit(empty_cache, key, b"no machine code")
    if damaged:
        find_unit(empty_cache, key).write_bytes(b"other bytes")
    decode = CompiledDecode(model, "fp32", 1, lines.append)
    assert len(lines) == 1
    assert "has been removed" in lines[0]
    assert torch.equal(read(decode, [[1, 2]]), read(PlainDecode(model), [[1, 2]]))
    CompiledDecode(model, "fp32", 1, lines.append)
    assert len(lines) == 1
    assert list(empty_cache.glob("*.pt2")) == []


@pytest.mark.parametrize("weights", WEIGHTS)
def test_without_a_compiler_the_plain_pass_serves(empty_cache, monkeypatch, weights):
    monkeypatch.setattr(hardware, "COMPILER", "/nonexistent")
    model, lines = make_model(MODERN, weights), []
    decode = CompiledDecode(model, weights, 16, lines.append)
    assert not decode.build()
    assert torch.equal(read(decode, [[1, 2], [3]]), read(PlainDecode(model), [[1, 2], [3]]))
    assert lines == []
    with pytest.raises(RuntimeError, match="there is no /nonexistent"):
        decode.build(wait=True)


def test_a_compiler_that_fails_is_tried_once(empty_cache, monkeypatch):
    broken = empty_cache / "broken"
    broken.write_text("#!/bin/sh\necho no such header >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setattr(hardware, "COMPILER", str(broken))
    lines = []
    config = replace(MODERN, n_layer=1, block_size=30)
    decode = CompiledDecode(make_model(config), "fp32", 1, lines.append)
    with pytest.raises(RuntimeError):
        decode.build(wait=True)
    assert not decode.build(), "it has failed before"
    assert lines == []


def test_units_are_kept_where_only_the_user_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_CACHE_DIR", "")
    assert cache_folder() is None
    monkeypatch.setenv("SLM_CACHE_DIR", str(tmp_path / "new"))
    assert cache_folder() == tmp_path / "new"
    assert (tmp_path / "new").stat().st_mode & 0o77 == 0
    (tmp_path / "new").chmod(0o777)
    assert cache_folder() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_CACHE_DIR", str(tmp_path / "file" / "folder"))
    assert cache_folder() is None
    monkeypatch.delenv("SLM_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "home", MagicMock(side_effect=RuntimeError("no home")))
        assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "slm"
