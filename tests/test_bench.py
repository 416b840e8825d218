"""The verb `bench`, and what it measures with."""

import json
from pathlib import Path

import pytest
from conftest import checkpoint, refuse


def test_bench_measures_a_checkpoint(slm, trained, workplace):
    words = (
        "--trainer.accelerator",
        "cpu",
        "--tokens",
        "4",
        "--repeats",
        "1",
        "--stories",
        "[1,3]",
        "--json",
        "speed.json",
    )
    result = slm("bench", "generate", "--ckpt_path", checkpoint("best", root=trained), *words)
    assert result.status == 0, result.err
    facts = json.loads(Path("speed.json").read_text())
    rows = [(row["teller"], row["stories"]) for row in facts["speeds"]]
    kinds = ["slm fp32", "slm bf16", "slm int8"]
    assert rows == [(kind, stories) for stories in (1, 3) for kind in kinds]
    for row in facts["speeds"]:
        assert 0 < row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert f"{row['tokens_per_second']:,.0f}" in result.out
    ours = measured_bits(slm, trained)
    assert facts["cost"]["fp32"] == pytest.approx(ours, abs=1e-5), "what `validate` says, in fp32"
    assert facts["cost"]["fp32"] != facts["cost"]["int8"]
    assert abs(facts["cost"]["fp32"] - facts["cost"]["int8"]) < 0.01
    assert facts["cold"]["1 new token"] > 0


def measured_bits(slm, trained):
    ckpt = checkpoint("best", root=trained)
    words = ("--trainer.precision", "32-true", "--json", "figures.json")
    assert slm("validate", "--ckpt_path", ckpt, *words).status == 0
    return json.loads(Path("figures.json").read_text())["val_bits_per_byte"]


def test_bench_measures_transformers_with_the_same_weights(slm, workplace):
    pytest.importorskip("transformers")
    (workplace / "gpt.yaml").write_text(
        "model: {gpt: {block_size: 32, vocab_size: 300, n_layer: 1, n_head: 2, n_embd: 16}}"
    )
    words = ("--vs", "transformers", "--repeats", "1", "--stories", "[2]", "--weights", "[fp32]")
    result = slm("bench", "generate", "--config", "gpt.yaml", *words)
    assert result.status == 0, result.err
    assert "27 new tokens each" in result.out, "what fits the context behind the prompt"
    assert "transformers fp32" in result.out
    assert "times transformers fp32" in result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("without what to measure", "slm bench generate --help")),
        (("train",), ("slm bench train", "slm bench generate")),
        (("generate", "--config", "tiny.yaml", "--vs", "llama"), ("llama",)),
        (
            ("generate", "--config", "tiny.yaml", "--tokens", "16", "--vs", "transformers"),
            ("at most 11",),
        ),
        (("generate", "--config", "tiny.yaml", "--stories", "[0]"), ("--stories [0]",)),
        (("generate", "--config", "tiny.yaml", "--stories", "[]"), ("--stories []",)),
        (("generate", "--config", "tiny.yaml", "--repeats", "0"), ("--repeats 0",)),
        (("generate", "--config", "tiny.yaml", "--tokens", "0"), ("--tokens 0",)),
        (("generate", "--config", "tiny.yaml", "--json", "no/a.json"), ("mkdir -p no",)),
        (("generate", "--config", "none.yaml"), ("none.yaml does not exist",)),
        (("generate",), ("there is no run",)),
        (("generate", "--config", "modern-5min", "--vs", "transformers"), ("position rotary",)),
    ],
)
def test_mistakes_in_measuring_are_explained(slm, words, expected):
    refuse(slm("bench", *words), *expected)
