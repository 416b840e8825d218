"""The scripts behind the figures run, and train as they say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_stories, write_stories

from slm.model import GPT, GPTConfig
from slm.training.muon import COEFFICIENTS

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name, monkeypatch):
    """A script of `benchmarks/` as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook(monkeypatch):
    return load("common_notebook", monkeypatch)


def test_the_common_notebook_is_measured(notebook, slm, workplace, monkeypatch, capsys):
    write_stories(workplace / "stories.txt", make_stories(3000))
    assert slm("prepare", "--config", "tiny.yaml").status == 0
    (prepared,) = Path("data").iterdir()
    monkeypatch.setattr(notebook, "STORY_TOKENS", 3)
    rows = ["--rows", "0", "6", "--seeds", "1", "--tokens", "9000"]
    monkeypatch.setattr(sys, "argv", ["common_notebook.py", str(prepared), *rows])
    notebook.main()
    first, second = json.loads(Path("notebook.json").read_text())
    assert (first["row"], first["steps"]) == (0, 2)
    assert (second["row"], second["steps"]) == (6, 8)
    assert 0 < second["bits_per_byte"] < first["bits_per_byte"] < 8
    assert first["ended"] == 0, "what it has never seen it does not say"
    assert "as published" in capsys.readouterr().out


def test_the_notebooks_learning_rate_rises_and_the_repaired_one_falls(notebook):
    published, falling = notebook.AS_PUBLISHED, notebook.Way(falling=True)
    assert notebook.rate(published, 0.0) == pytest.approx(1e-4 / 3)
    assert notebook.rate(published, 0.05) == pytest.approx(1e-4)
    assert notebook.rate(published, 1.0) == pytest.approx(5e-4)
    assert notebook.rate(falling, 0.05) == pytest.approx(5e-4)
    assert notebook.rate(falling, 1.0) == pytest.approx(5e-5)


def test_its_measure_is_exact_for_a_model_that_knows_nothing(notebook):
    model = GPT(GPTConfig(notebook.CONTEXT, 256, 1, 1, 8))
    torch.nn.init.zeros_(model.token_embedding.weight)  # every logit is 0, every token 8 bits
    ids, byte_lengths = np.arange(5 * notebook.CONTEXT + 7) % 256, np.full(256, 2)
    byte_lengths[0] = 0
    read = byte_lengths[ids[1 : 5 * notebook.CONTEXT + 1]].sum()
    bits = notebook.bits_per_byte(model, ids, byte_lengths)
    assert bits == pytest.approx(8 * 5 * notebook.CONTEXT / read, rel=1e-5)


def test_clipping_scaled_gradients_leaves_next_to_nothing_of_them(notebook, monkeypatch):
    """Measured is the norm of the gradient that AdamW gets to see."""
    seen = {}

    class Spy(torch.optim.AdamW):
        def step(self):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            parameters = sum(gradient.numel() for gradient in gradients)
            assert self.defaults["eps"] == pytest.approx(1e-9 * (30e6 / parameters) ** 0.5)
            assert [group["weight_decay"] for group in self.param_groups] == [0.1, 0.0]
            assert len(self.param_groups[1]["params"]) == 0, "it decays everything"
            seen[way] = float(torch.nn.utils.get_total_norm(gradients))
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    ids = np.arange(2000) % 300
    for way in (notebook.AS_PUBLISHED, notebook.Way(unscaled=True)):
        notebook.train(way, ids, 300, notebook.BATCH * notebook.CONTEXT, seed=1)
    published, repaired = seen.values()
    assert published == pytest.approx(0.5 / 65536, rel=1e-3)
    assert 0.01 < repaired <= 0.501


def test_muons_coefficients_are_what_is_computed(monkeypatch):
    found, error = load("muon", monkeypatch).coefficients(0.01, iterations=3, slack=1.02)
    assert np.allclose(found, COEFFICIENTS, atol=6e-5)
    assert error == pytest.approx(0.29, abs=0.005)


@pytest.mark.slow
def test_what_is_to_be_run_on_a_gpu_runs_on_a_cpu_in_small(monkeypatch, workplace):
    gpu = load("gpu", monkeypatch)
    words = """gpu.py stories.txt --accelerator cpu --configs quickstart --batch_sizes 2
        --counts 1 2 --tokens 4 --repeats 1 --budgets 5s --compile false --commit abc"""
    write_stories(workplace / "stories.txt", make_stories(30_000))
    monkeypatch.setattr(sys, "argv", words.split())
    gpu.main()
    parts = json.loads(Path("gpu.json").read_text())["parts"]
    assert list(parts) == ["tests", "train-quickstart", "generate", "budget-5s"]
    assert all(part["status"] == 0 for part in parts.values()), parts
    assert 0 < parts["budget-5s"]["bits_per_byte"] < 8
    tables = Path("gpu.md").read_text()
    for row in ("slm Trainer", "slm fp32 | 2 |", "| 5s | 2 layers"):
        assert row in tables


def test_what_scaling_says_is_in_the_docs(monkeypatch, capsys):
    load("scaling", monkeypatch).main()
    assert capsys.readouterr().out in (FOLDER.parent / "docs" / "scaling.md").read_text()


@pytest.mark.slow
def test_killed_runs_are_compared(monkeypatch, tmp_path, capsys):
    script = load("kill_resume", monkeypatch)
    config = script.CONFIG | {"val_interval": 4, "data": script.CONFIG["data"]}
    config["trainer"] = script.CONFIG["trainer"] | {"max_steps": 8}
    stories = write_stories(tmp_path / "stories.txt", make_stories(2000))
    config["data"] = config["data"] | {"source": str(stories)}
    monkeypatch.setattr(script, "CONFIG", config)
    found = script.measure(["--model.gpt.n_layer", "1"], 1, 1, tmp_path)
    assert found["identical"] == 1
    assert found["trials"][0]["differences"] == {}
