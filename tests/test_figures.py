"""Attention, weights, expectations, curves: what the figures show is true."""

import os
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from conftest import checkpoint, plain_attention, refuse
from torch.utils.tensorboard.writer import SummaryWriter

from slm.data.tokenizer import Tokenizer
from slm.model import GPT, GPTConfig, gpt
from slm.model.attention_maps import attention_maps
from slm.reports.figures.attention import draw_head, draw_heads, maps_of_text, token_label
from slm.reports.figures.curves import (
    RunCurves,
    draw_bits_per_byte,
    draw_gradient_norm,
    draw_learning_rate,
    draw_loss,
    read_run,
)
from slm.reports.figures.next_tokens import draw_next_tokens, expectations
from slm.reports.figures.style import as_array, as_bytes
from slm.reports.figures.weights import draw_weights, weight_groups

SHAPES = [
    GPTConfig(block_size=16, vocab_size=300, n_layer=2, n_head=2, n_embd=16, dropout=0.0),
    GPTConfig(
        block_size=16, vocab_size=300, n_layer=1, n_head=4, n_embd=32, dropout=0.0,
        position="rotary", qk_norm=True, norm="rms", mlp="swiglu", tied=False,
    ),
]  # fmt: skip


@pytest.fixture(params=SHAPES, ids=["classic", "modern"])
def model(request):
    torch.manual_seed(0)
    network = GPT(request.param).eval()
    with torch.no_grad():  # far from the beginning, where all weights are alike
        for weight in network.parameters():
            weight.mul_(8)
    return network


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["Once upon a time there was a cat. It was happy.\n"] * 50, 300)


def test_attention_rows_sum_to_one_and_never_look_ahead(model):
    maps = attention_maps(model, torch.randint(300, (12,)))
    shape = model.config
    assert maps.shape == (shape.n_layer, shape.n_head, 12, 12)
    assert maps.sum(-1) == pytest.approx(torch.ones(maps.shape[:-1]), abs=1e-6)
    assert not maps.triu(1).any()
    assert maps.std() > 0.05  # no uniform rows, which would equal anything


def test_attention_maps_are_the_weights_that_the_network_uses(model, monkeypatch):
    tokens = torch.randint(300, (12,))
    used = []

    def note(queries, keys, weights=gpt.attention_weights):
        used.append(weights(queries, keys))
        return used[-1]

    monkeypatch.setattr(gpt, "attention_weights", note)
    with torch.no_grad(), plain_attention():
        model(tokens[None])
    monkeypatch.undo()
    torch.testing.assert_close(attention_maps(model, tokens), torch.cat(used))


def test_attention_weights_give_what_the_kernel_computes(model):
    """The maps times the values are what the layer mixes, by torch's own kernel."""
    tokens = torch.randint(300, (1, 12))
    attention = model.blocks[0].attention
    seen = {}
    attention.register_forward_hook(lambda layer, given, out: seen.update(x=given, out=out))
    with torch.no_grad():
        model(tokens)
        _, _, values = attention.heads(*seen["x"][:2])
        mixed = attention_maps(model, tokens[0])[0] @ values[0]
        out = attention.proj(mixed.transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, seen["out"][0], rtol=1e-4, atol=1e-4)


def test_looking_leaves_no_trace(model):
    tokens = torch.randint(300, (12,))
    before = model(tokens[None])
    attention_maps(model, tokens)
    assert torch.equal(model(tokens[None]), before)
    assert not any(block.attention._forward_pre_hooks for block in model.blocks)


def test_tokens_have_labels_that_can_be_seen(tokenizer):
    labels = [token_label(tokenizer, token) for token in tokenizer.encode(" a\n$")]
    assert "".join(labels) == "·a↵\\$"
    assert token_label(tokenizer, tokenizer.end_of_text) == "<end>"
    labels = [token_label(tokenizer, token) for token in range(tokenizer.n_vocab)]
    assert all(label.isprintable() and label.strip() for label in labels)


def test_expectations_are_the_models(model, tokenizer):
    text = "Once upon a time"
    ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
    found = expectations(model, tokenizer, text)
    probabilities = model(torch.tensor([ids[:-1]]))[0].softmax(-1).detach()
    assert [each.probability for each in found] == pytest.approx(
        [float(probabilities[n, token]) for n, token in enumerate(ids[1:])]
    )
    for each, row in zip(found, probabilities, strict=True):
        assert each.likeliest[0][1] == pytest.approx(float(row.max()))
    assert expectations(model, tokenizer, "") == []


def test_every_matrix_is_in_the_weights_figure(model):
    shown = {
        weight.data_ptr() for parts in weight_groups(model).values() for weight in parts.values()
    }
    matrices = {weight.data_ptr() for weight in model.parameters() if weight.dim() == 2}
    assert shown == matrices


def test_figures_can_be_drawn(model, tokenizer):
    tokens, maps = maps_of_text(model, tokenizer, "Once upon a time $x$ there was a cat. " * 5)
    assert len(tokens) == model.config.block_size
    labels = [token_label(tokenizer, token) for token in tokens]
    for figure in (
        draw_head(maps[0, 0], labels, "a head"),
        draw_heads(maps),
        draw_weights(model),
        draw_next_tokens(expectations(model, tokenizer, "Once $upon$")),
    ):
        pixels = as_array(figure)
        assert pixels.ndim == 3
        assert pixels.std() > 5, "not empty"
        root = ElementTree.fromstring(as_bytes(figure, "svg"))
        assert root.tag.endswith("svg")
        assert as_bytes(figure, "png").startswith(b"\x89PNG")


# ---- curves -------------------------------------------------------------------------------------


def curves(tmp_path, name="version_0", **scalars):
    made = {
        key: (np.array(steps, float), np.array(values, float))
        for key, (steps, values) in scalars.items()
    }
    return RunCurves(tmp_path / name, made, [], name)


def test_steps_become_tokens(tmp_path):
    run = curves(tmp_path, tokens_seen=([10, 20], [1000, 3000]))
    assert run.tokens(np.array([0, 5, 10, 15, 20, 30])).tolist() == [
        0, 500, 1000, 2000, 3000, 4500,
    ]  # fmt: skip


def test_losses_stand_over_tokens(tmp_path):
    run = curves(
        tmp_path,
        tokens_seen=([10, 20], [1e6, 2e6]),
        train_loss=([10, 20], [3.0, 2.0]),
        val_loss=([20], [2.5]),
    )
    linear, log = draw_loss([run]).axes
    assert linear.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert linear.lines[0].get_ydata().tolist() == [3.0, 2.0]
    assert linear.lines[1].get_xdata().tolist() == [2.0]
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    assert draw_bits_per_byte([run]) is None
    assert draw_loss([curves(tmp_path)]) is None


def test_without_tokens_the_axis_says_steps(tmp_path):
    counted = curves(tmp_path, tokens_seen=([10], [1e6]), lr=([10], [1.0]))
    plain = curves(tmp_path, "two", lr=([10], [1.0]))
    (axes,) = draw_learning_rate([counted]).axes
    assert (axes.get_xlabel(), axes.lines[0].get_xdata().tolist()) == ("million tokens seen", [1])
    (axes,) = draw_learning_rate([counted, plain]).axes
    assert axes.get_xlabel() == "optimizer steps"
    assert [line.get_xdata().tolist() for line in axes.lines] == [[10], [10]]


def test_several_runs_are_told_apart(tmp_path):
    runs = [curves(tmp_path, name, val_loss=([1, 2], [3, 2])) for name in ("one", "two")]
    lines = draw_loss(runs).axes[0].lines
    assert len({line.get_color() for line in lines}) == 2
    assert len({line.get_linestyle() for line in lines}) == 2, "without colours, too"
    assert {line.get_label().split(",")[0] for line in lines} == {"one", "two"}


@pytest.mark.parametrize("reach", [(2.8, 6.5), (0.1, 100.0), (1e-2, 1e3), (1e-4, 1e4), (1e-9, 9)])
def test_logarithmic_axes_have_labels_enough_and_not_too_many(tmp_path, reach):
    run = curves(tmp_path, grad_norm=([1, 2], reach), train_loss=([1, 1000], reach))
    (norm,), (_, loss) = draw_gradient_norm([run]).axes, draw_loss([run]).axes
    for axis in (norm.yaxis, loss.yaxis, loss.xaxis):
        low, high = axis.get_view_interval()
        shown = [place for place in axis.get_majorticklocs() if low <= place <= high]
        assert 2 <= len(shown) <= 12, (axis, shown)


def test_what_is_no_number_is_left_out(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("val_loss", float("nan"), 5)
        for step, value in enumerate((3.0, float("nan"), float("inf"), 2.0)):
            writer.add_scalar("train_loss", value, step)
    run = read_run(tmp_path)
    assert "val_loss" not in run.scalars
    assert run.scalars["train_loss"][0].tolist() == [0, 3]


def test_every_run_has_a_name_and_its_colour_in_every_figure(tmp_path):
    one = curves(tmp_path, "one", train_loss=([1, 2], [3, 2]))
    two = curves(tmp_path, "two", train_loss=([1, 2], [3, 2]), val_loss=([2], [2.5]), lr=([1], [1]))
    loss = draw_loss([one, two]).axes[0]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["one, training", "two, best 2.500"]
    (rate,) = draw_learning_rate([one, two]).axes
    assert rate.lines[0].get_color() == loss.lines[-1].get_color()
    assert [text.get_text() for text in rate.get_legend().get_texts()] == ["two"]


# ---- the verb -----------------------------------------------------------------------------------


def test_plot_draws_a_run(slm, trained, tmp_path):
    run = checkpoint("best", root=trained).parent.parent
    result = slm("plot", run, "--out", tmp_path / "f", "--prompt", "Once upon a dog", "--head", "2")
    assert result.status == 0, result.err
    names = {path.name for path in (tmp_path / "f").iterdir()}
    expected = "loss bits-per-byte learning-rate gradient-norm throughput weights attention"
    for name in (*expected.split(), "attention-heads", "next-tokens"):
        assert {f"{name}.png", f"{name}.svg"} <= names, names
        assert f"{name}.png" in result.out
    assert (
        "Layer 2, head 2 (version_0, best, step" in (tmp_path / "f" / "attention.svg").read_text()
    )
    again = slm("plot", run, "--out", tmp_path / "g", "--prompt", "Once upon a dog", "--head", "2")
    assert again.status == 0
    for name in ("loss.svg", "attention.svg"):
        assert (tmp_path / "f" / name).read_bytes() == (tmp_path / "g" / name).read_bytes()


def test_plot_draws_the_checkpoint_that_is_named(slm, trained, tmp_path):
    last = checkpoint("last", root=trained)
    run = last.parent.parent
    for words, name in (
        ((last,), "last"),
        ((run, "--ckpt_path", "last"), "last"),
        ((run, "--ckpt_path", last), "last"),
        ((run,), "best"),
    ):
        assert slm("plot", *words, "--out", tmp_path / "f", "--formats", "svg").status == 0
        assert f"(version_0, {name}, step" in (tmp_path / "f" / "attention.svg").read_text()


def test_a_checkpoint_brings_its_run(slm, trained, workplace):
    mine, newest = (workplace / "lightning_logs" / f"version_{number}" for number in (0, 1))
    for run in (mine, newest):
        shutil.copytree(checkpoint("best", root=trained).parent.parent, run)
    result = slm("plot", "--ckpt_path", mine / "checkpoints" / "last.ckpt", "--formats", "[png]")
    assert result.status == 0, result.err
    assert (mine / "figures" / "loss.png").exists()
    assert not (newest / "figures").exists()
    short = slm("plot", "version_0/checkpoints/last.ckpt", "--formats", "[svg]")
    assert short.status == 0, short.err
    assert "(version_0, last, step" in (mine / "figures" / "attention.svg").read_text()
    mixed = slm("plot", newest, "--ckpt_path", mine / "checkpoints" / "last.ckpt")
    refuse(mixed, "is not a checkpoint of")


def test_plot_compares_runs(slm, trained, tmp_path):
    run = checkpoint("best", root=trained).parent.parent
    other = tmp_path / "other" / "lightning_logs" / "version_0"
    shutil.copytree(run, other)
    result = slm("plot", run, other, "--out", tmp_path / "f", "--formats", "[png, svg]")
    assert result.status == 0, result.err
    drawn = (tmp_path / "f" / "loss.svg").read_text()
    assert "other/lightning_logs/version_0" in drawn, "two version_0 have different names"
    for option, value in (("prompt", "Tom"), ("layer", 1), ("head", 1), ("ckpt_path", "best")):
        refuse(slm("plot", run, other, f"--{option}", value), f"--{option} with 2 runs", "one run")
    same = slm("plot", run, run, "--out", tmp_path / "same", "--formats", "svg")
    assert same.status == 0
    assert (tmp_path / "same" / "weights.svg").exists(), "the same run twice is one run"
    assert (tmp_path / "f" / "loss.png").exists()
    assert not (tmp_path / "f" / "weights.png").exists()


def test_the_newest_run_may_have_curves_only(slm, trained, workplace):
    for number in (0, 1):
        run = workplace / "lightning_logs" / f"version_{number}"
        shutil.copytree(checkpoint("best", root=trained).parent.parent, run)
    shutil.rmtree(run / "checkpoints")
    for path, when in ((run, 2e9), (run.parent / "version_0", 1e9)):
        for file in path.rglob("*.*"):
            os.utime(file, (when, when))
    result = slm("plot", "--formats", "[png]")
    assert result.status == 0, result.err
    assert "version_1/figures/loss.png" in result.out
    assert "contains no checkpoint" in result.err
    assert slm("report").status == 0
    page = (run / "report.html").read_text()
    assert "this run has none" in page
    assert "<summary>step 12</summary>" in page


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--layer", "3"], "from 1 to 2"),
        (["--head", "0"], "from 1 to 2"),
        (["--formats", "[pdf]"], "png, svg or both"),
        (["--ckpt_path", "absent.ckpt"], "--ckpt_path absent.ckpt does not exist"),
        (["--ckpt_path", "lastt"], "remedy:   --ckpt_path last\n"),
        (["--prompt", " "], "--prompt is empty"),
        (["--out", "stories.txt"], "stories.txt is a file"),
        (["--formats", "[]"], "png, svg or both"),
    ],
)
def test_mistakes_are_explained(slm, trained, words, expected):
    refuse(slm("plot", checkpoint("best", root=trained).parent.parent, *words), expected)


def test_what_is_no_run_is_refused(slm, workplace):
    refuse(slm("plot"), "there is no run")
    refuse(slm("plot", "absent"), "'absent' is not a folder")
    refuse(slm("report", workplace), "neither curves nor checkpoints")
