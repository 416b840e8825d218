"""The verb `bench`, and what it measures with."""

import json
from pathlib import Path

import pytest
from conftest import TINY, checkpoint, refuse

from slm.generation.quantization import native_formats


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
    kinds = [f"slm {kind}" for kind in native_formats("cpu")]
    assert ("Left out   bf16" in result.err) == ("slm bf16" not in kinds)
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


NANOGPT = """
import torch
class GPTConfig:
    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias):
        self.vocab_size, self.n_embd = vocab_size, n_embd
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.n_embd)
    def configure_optimizers(self, weight_decay, lr, betas, device):
        print("an optimizer of another project")
        return torch.optim.AdamW(self.parameters(), lr=lr)
    def forward(self, inputs, targets):
        logits = self.embedding(inputs) @ self.embedding.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_bench_measures_training_in_turns_with_another(slm, workplace):
    (workplace / "model.py").write_text(NANOGPT)
    words = ("--vs", "model.py", "--repeats", "2", "--steps", "3", "--json", "speed.json")
    result = slm("bench", "train", "--config", "tiny.yaml", "--precision", "32-true", *words)
    assert result.status == 0, result.err
    facts = json.loads(Path("speed.json").read_text())
    rates = {rate["arm"]: rate for rate in facts["rates"]}
    assert list(rates) == [
        "slm Trainer",
        "slm bare loop",
        "nanoGPT 32-true",
        "nanoGPT float32, eager",
    ]
    for name, rate in rates.items():
        assert len(rate["tokens_per_second"]) == 2
        assert rate["peak_bytes"] > 100e6
        assert f"{rate['median_tokens_per_second']:,.0f}" in result.out
        share = rate["tokens_per_second"][0] * facts["flops_per_token"] / rate["utilization"][0]
        # Of the same turn, where the fact is the median of both: on a busy machine they differ.
        assert 1 / 4 < share / facts["matrix_flops_per_second"] < 4, name
    parts = rates["slm bare loop"]["parts"]
    assert list(parts) == ["data", "forward", "backward", "optimizer"]
    loop = facts["loop_seconds"]
    assert min(loop["loop"], loop["loop alone"]) > 1e-5
    assert f"our callbacks and curves {1e3 * loop['callbacks']:.2f}" in result.out
    assert rates["slm Trainer"]["training"]["gpt"]["n_layer"] == 2, "of the config"


def test_what_does_not_work_is_left_out_and_said(slm, workplace):
    (workplace / "model.py").write_text("class GPTConfig: pass")
    words = ("--vs", "model.py", "--repeats", "1", "--steps", "1", "--loop", "false")
    result = slm("bench", "train", "--config", "tiny.yaml", "--batch_size", "[2,4]", *words)
    assert result.status == 0, result.err
    assert "does not work here: AttributeError" in result.err
    assert "slm Trainer, 2 windows" in result.out
    assert "slm bare loop, 4 windows" in result.out
    assert "nanoGPT" not in result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("without what to measure", "slm bench generate --help")),
        (("trian",), ("slm bench trian", "slm bench train --help")),
        (("train", "--config", "none.yaml"), ("none.yaml does not exist",)),
        (("train", "--config", "tiny.yaml", "--batch_size", "0"), ("--batch_size 0",)),
        (("train", "--config", "tiny.yaml", "--batch_size", "[4,-1]"), ("--batch_size [4, -1]",)),
        (("train", "--config", "tiny.yaml", "--repeats", "0"), ("--repeats 0",)),
        (("train", "--config", "tiny.yaml", "--block_size", "0"), ("block_size is 0",)),
        (("train", "--config", "tiny.yaml", "--dropout", "2"), ("dropout is 2",)),
        (("train", "--config", "tiny.yaml", "--precision", "fp8"), ("--precision is",)),
        (("train", "--config", "tiny.yaml", "--vs", "model.py"), ("git clone",)),
        (("train", "--config", "modern-5min", "--vs", "tiny.yaml"), ("classic model",)),
        (("train", "--config", "tiny.yaml", "--json", "no/a.json"), ("mkdir -p no",)),
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
    ],
)
def test_mistakes_in_measuring_are_explained(slm, words, expected):
    refuse(slm("bench", *words), *expected)


def test_a_shape_that_transformers_lacks_is_named(slm, workplace):
    odd = TINY.replace("dropout: 0.0", "dropout: 0.0, position: rotary")
    (workplace / "odd.yaml").write_text(odd, encoding="utf-8")
    refuse(slm("bench", "generate", "--config", "odd.yaml", "--vs", "transformers"), "rotary")
