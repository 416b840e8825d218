"""The command line as a person meets it: every verb, and every mistake."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from conftest import checkpoint, make_stories, refuse

from slm import __version__
from slm.cli import VERBS
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import parse
from slm.commands.prepare import _IGNORED, PrepareOptions
from slm.data.corpus import Corpus
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.model import GPT, GPTConfig
from slm.reports.figures.curves import read_run
from slm.training.checkpoint import open_checkpoint

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_the_four_verbs_from_training_to_a_story(slm, workplace):
    fit = slm("fit", "--config", "tiny.yaml")
    assert fit.status == 0, fit.err
    assert "without embeddings" in fit.err
    assert "val_loss" in fit.err
    assert "A story by the best checkpoint:\n\nOnce upon a time" in fit.out
    run = workplace / "lightning_logs" / "version_0"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "loss.png", "checkpoints"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    said = float(fit.out.split("(val_loss ")[1].split(")")[0])

    for verb, prefix in (("validate", "val"), ("test", "test")):
        result = slm(verb, "--ckpt_path", checkpoint("best"), "--json", f"{verb}.json")
        assert result.status == 0, result.err
        figures = json.loads(Path(f"{verb}.json").read_text())
        assert figures[f"{prefix}_loss"] == pytest.approx(said, abs=1e-4)
        assert f"{said:.4f} nats per token" in result.out

    predict = slm("predict", "--ckpt_path", checkpoint("best"), "--prompt", "One day, a cat")
    assert predict.status == 0, predict.err
    assert predict.out.startswith("One day, a cat")
    assert len(predict.out) > 30


# ---- fit -------------------------------------------------------------------------------


def test_the_last_run_is_resumed_in_its_own_folder_with_its_own_config(slm, workplace):
    assert slm("fit", "--config", "tiny.yaml", "--trainer.max_steps", "6").status == 0
    result = slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "12")
    assert result.status == 0, result.err
    assert "last.ckpt at step 6" in result.err
    assert "decay_steps 6 -> 12" in result.err
    assert "The learning rate continues on another curve" in result.err
    assert [path.name for path in (workplace / "lightning_logs").iterdir()] == ["version_0"]
    assert open_checkpoint(checkpoint("last")).step == 12
    names = sorted(path.name for path in checkpoint().parent.parent.glob("*.yaml"))
    assert names == ["config-2.yaml", "config.yaml", "hparams.yaml"]
    again = slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "14")
    assert again.status == 0, again.err
    config = yaml.safe_load((checkpoint().parent.parent / "config-3.yaml").read_text())
    assert config["ckpt_path"] is None, "a saved config trains a model of its own"


def test_any_checkpoint_of_a_run_brings_its_config(slm, workplace):
    options = ("--seed_everything", "5", "--trainer.accumulate_grad_batches", "2")
    assert slm("fit", "--config", "tiny.yaml", *options).status == 0
    result = slm("fit", "--ckpt_path", checkpoint("best"), "--trainer.max_steps", "16")
    assert result.status == 0, result.err
    assert "From step 12 on, unlike before: decay_steps 12 -> 16\n" in result.err
    assert open_checkpoint(checkpoint("last", 1)).step == 16


def final_weights(version=0):
    return open_checkpoint(checkpoint("last", version)).make_model().state_dict()


def test_sixty_steps_with_a_resume_after_thirty_equal_sixty(slm):
    plan = ("fit", "--config", "tiny.yaml", "--model.optimizer.decay_steps", "60")
    assert slm(*plan, "--trainer.max_steps", "60").status == 0
    whole = final_weights(0)
    assert slm(*plan, "--trainer.max_steps", "30").status == 0
    assert open_checkpoint(checkpoint("last", 1)).step == 30
    half = final_weights(1)
    assert slm(*plan, "--trainer.max_steps", "60", "--ckpt_path", "last").status == 0
    resumed = final_weights(1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], half[name]) for name in whole)


def test_an_interrupted_run_is_saved_and_resumed(trained, tmp_path):
    """Ctrl-C, as the terminal sends it: SIGINT in the middle of training."""
    import signal
    import time

    (tmp_path / "tiny.yaml").write_text((trained / "tiny.yaml").read_text())
    (tmp_path / "stories.txt").write_text((trained / "stories.txt").read_text())
    command = [sys.executable, "-m", "slm.cli", "fit", "--config", "tiny.yaml"]
    command += ["--trainer.max_steps", "100000", "--val_interval", "20"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            for line in process.stderr:
                if line.startswith("step"):
                    break
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "slm fit --ckpt_path last" in err
    assert "Traceback" not in err
    step = open_checkpoint(checkpoint("last", root=tmp_path)).step
    assert f"Interrupted at step {step:,}." in err
    assert "slm report lightning_logs/version_0" in err
    assert step >= 20


def test_curves_and_a_story_are_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "lightning_logs" / "version_0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {
        "train_loss", "lr", "grad_norm", "tokens_per_second", "tokens_seen",
        "val_loss", "val_perplexity", "val_bits_per_byte",
    }  # fmt: skip
    assert "hp_metric" not in events.Tags()["scalars"]
    assert [point.step for point in events.Scalars("train_loss")] == [2, 4, 6, 8, 10, 12]
    assert [point.step for point in events.Scalars("val_loss")] == [10, 12]
    assert [point.value for point in events.Scalars("tokens_seen")][-1] == 12 * 4 * 16
    (tag,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("story"))
    story = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
    assert story.startswith("Once upon a time")


def test_every_option_can_be_set_and_the_config_printed(slm):
    result = slm("fit", "--config", "tiny.yaml", "--model.gpt.n_layer", "3", "--print_config")
    assert result.status == 0
    printed = yaml.safe_load(result.out)
    assert printed["model"]["gpt"]["n_layer"] == 3
    assert printed["trainer"]["precision"] == "auto"


def test_a_saved_config_trains_the_same_model_again(slm, workplace):
    assert slm("fit", "--config", "tiny.yaml", "--data.batch_size", "3").status == 0
    saved = checkpoint().parent.parent / "config.yaml"
    assert slm("fit", "--config", saved).status == 0
    first, second = final_weights(0), final_weights(1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_decides_weights_and_data(slm):
    for seed in ("1", "1", "2"):
        assert slm("fit", "--config", "tiny.yaml", "--seed_everything", seed).status == 0
    a, b, c = (final_weights(version)["blocks.0.mlp.up.weight"] for version in range(3))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# ---- prepare and info --------------------------------------------------------------------


def test_prepare_alone(slm, workplace):
    result = slm("prepare", "--config", "tiny.yaml")
    assert result.status == 0, result.err
    assert (workplace / "data" / "stories-bpe300" / "manifest.json").exists()
    assert "bytes per token" in result.out
    assert not (workplace / "lightning_logs").exists()
    before = (workplace / "data" / "stories-bpe300" / "train.bin").stat().st_mtime_ns
    fit = slm("fit", "--config", "tiny.yaml")
    assert fit.status == 0, fit.err
    assert "Preparing" not in fit.err
    assert (workplace / "data" / "stories-bpe300" / "train.bin").stat().st_mtime_ns == before


def test_preparing_and_training_have_the_same_data_options(slm):
    """Training also has those of batches."""

    def options(verb):
        return set(re.findall(r"--data\.([a-z_.]+)", slm(verb, "--help").out))

    assert options("fit") - options("prepare") - {"clean"} == {
        "batch_size", "eval_batch_size", "num_workers", "order",
    }  # fmt: skip
    assert options("prepare") >= {field.name for field in fields(Corpus)} - {"clean"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_prepare_reads_the_data_section_of_every_config(workplace, config):
    arguments = Arguments(["--config", str(config), "--data.root", "elsewhere"])
    options = parse("prepare", PrepareOptions, arguments, "slm prepare", _IGNORED)
    data = yaml.safe_load(config.read_text())["data"]
    assert options.data.source == data["source"]
    assert options.data.tokenizer == data["tokenizer"]
    assert options.data.root == "elsewhere"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data.source", "nowhere"), "nowhere does not exist"),
        (("--data.sauce", "x"), "there is no option --data.sauce"),
        (("--data.vocab_size", "many"), "--data.vocab_size is many"),
        (("--data.validation_share", "2"), "--data.validation_share 2"),
        (("--model.gpt.n_layer", "2"), "there is no option --model.gpt.n_layer"),
        (("--config", "broken.yaml"), "broken.yaml cannot be read"),
        (("--config", "clean.yaml"), "clean.yaml: there is no option --data.clean"),
        (("--config", "date.yaml"), "2026-11-21 does not exist"),
        (("--config", "list.yaml"), "list.yaml cannot be read"),
        (("--config", "typo.yaml"), "there is no option --data.sorce"),
        (("--config",), "--config"),
    ],
)
def test_mistakes_in_preparing_are_explained(slm, workplace, words, expected):
    (workplace / "broken.yaml").write_text("data: {source: [")
    (workplace / "list.yaml").write_text("[1]")
    (workplace / "clean.yaml").write_text("data: {clean: true}")
    (workplace / "date.yaml").write_text("data: {source: 2026-11-21}")
    (workplace / "typo.yaml").write_text("data: {sorce: stories.txt}")
    refuse(slm("prepare", *words), expected)


def test_of_two_configs_the_later_wins_in_preparing_as_in_training(slm, workplace):
    (workplace / "b.yaml").write_text("data: {vocab_size: 280}")
    for words, size in (
        (("--config", "tiny.yaml", "--config", "b.yaml"), 280),
        (("--config", "b.yaml", "--config", "tiny.yaml"), 300),
    ):
        result = slm("prepare", *words, "--data.root", f"root{size}")
        assert result.status == 0, result.err
        assert Path(f"root{size}/stories-bpe{size}/manifest.json").exists()


def test_preparing_with_everything_said_at_once(slm, workplace):
    """A template, several sources, cleaning: on the command line and in a file."""
    rows = [{"Context": f"I am {n}.", "Response": "Why?"} for n in range(40)]
    (workplace / "talks").mkdir()
    lines = [json.dumps(row) for row in [*rows, rows[0], {"Context": None, "Response": " "}]]
    (workplace / "talks" / "talks.jsonl").write_text("\n".join(lines))
    words = (
        "--data.source", '["talks", "stories.txt"]', "--data.text_column", r"{Context}\n{Response}",
        "--data.validation_share", "0.3", "--data.tokenizer", "bpe", "--data.vocab_size", "300",
        "--data.clean.drop_duplicates", "true", "--data.clean.drop_empty", "true",
    )  # fmt: skip
    result = slm("prepare", *words)
    assert result.status == 0, result.err
    folder = workplace / "data" / "talks+stories-bpe300-nonempty-unique"
    assert f"{folder.relative_to(workplace)}\n" in result.out
    assert "1 empty left out" in result.out
    assert "1 repetitions left out" in result.out
    (workplace / "all.yaml").write_text(
        'data:\n  source: [talks, stories.txt]\n  text_column: "{Context}\\n{Response}"\n'
        "  validation_share: 0.3\n  tokenizer: bpe\n  vocab_size: 300\n  batch_size: 4\n"
        "  clean: {drop_duplicates: true, drop_empty: true}\n  root: other\n"
    )
    again = slm("prepare", "--config", "all.yaml")
    assert again.status == 0, again.err
    for name in ("train.bin", "validation.bin", "tokenizer.json"):
        assert (folder / name).read_bytes() == (
            workplace / "other" / folder.name / name
        ).read_bytes()
    fit = slm("fit", "--config", "tiny.yaml", *words)
    assert fit.status == 0, fit.err
    assert "Preparing" not in fit.err
    fit = slm("fit", "--config", "tiny.yaml", "--config", "all.yaml")
    assert fit.status == 0, fit.err
    assert "Preparing" not in fit.err


def test_info_shows_what_a_folder_holds(slm, workplace):
    assert slm("prepare", "--config", "tiny.yaml").status == 0
    result = slm("info", "data/stories-bpe300", "--json", "info.json")
    assert result.status == 0, result.err
    facts = json.loads(Path("info.json").read_text())
    train = facts["splits"]["train"]
    for text in (
        f"source       {workplace / 'stories.txt'}, revision",
        "tokenizer    bpe, 300 tokens, SHA-256",
        f"train        {train['stories']:,} stories, {train['tokens']:,} tokens",
        f"{train['bytes'] / train['tokens']:.2f} bytes per token",
        f"  vocabulary {train['vocabulary_used']} of 300 tokens occur",
        "--- story 3 of 3",
    ):
        assert text in result.out, text
    assert "verified" not in result.out
    assert sum(count for *_, count in train["length_histogram"]) == train["stories"]
    assert all(story in make_stories(200) for story in facts["examples"])
    assert slm("info", "data/stories-bpe300", "--seed", "2").out != result.out
    verified = slm("info", "data/stories-bpe300", "--verify")
    assert verified.status == 0
    assert "verified: everything is as its manifest states" in verified.out


def test_info_says_what_else_a_folder_is(slm, workplace):
    """And never advises to remove it."""
    assert slm("prepare", "--config", "tiny.yaml").status == 0
    result = slm("info", "data")
    refuse(result, "not a folder of prepared data", "slm info data/stories-bpe300")
    assert "remove" not in result.err
    refuse(slm("info", "data/stories-bpe300/train.bin"), "slm info data/stories-bpe300")
    unfinished = workplace / "half" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "plan.json").write_text(json.dumps({"pieces": ["a", "b", "c"]}))
    (unfinished / "00001.json").write_text("{}")
    result = slm("info", "half")
    refuse(result, "1 of 3 shards are finished", "continues from there")
    assert "remove" not in result.err


def test_a_vocabulary_larger_than_the_text_gives_is_said(slm):
    result = slm("prepare", "--config", "tiny.yaml", "--data.vocab_size", "5000")
    assert result.status == 0, result.err
    assert re.search(r"gives only \d+ tokens; [\d,]+ of 5,000 stay unused", result.err)
    assert "stay unused" not in slm("prepare", "--config", "tiny.yaml").err


def test_vocabularies_that_differ_are_noticed_before_anything_is_prepared(slm):
    refuse(slm(*fit("--data.vocab_size", "301")), "--model.gpt.vocab_size 301")
    assert not Path("data").exists()
    assert not Path("lightning_logs").exists()


def test_a_bpe_model_is_not_measured_in_gpt2s_vocabulary(slm, trained):
    words = ("validate", "--ckpt_path", checkpoint("best", root=trained), "--data.root", "new")
    refuse(slm(*words, "--data.tokenizer", "gpt2", "--data.vocab_size", "50257"), "is not the one")
    assert not Path("new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_disk_that_is_full_when_a_checkpoint_is_written_is_explained(workplace):
    """A limit on the size of files stands for it."""
    (workplace / "data").mkdir()
    code = (
        "import resource, sys; from slm.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY)); "
        "sys.exit(main(['fit', '--config', 'tiny.yaml']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
    assert "MB are free" in done.stderr
    assert not checkpoint("best", root=workplace).exists()


def test_info_describes_a_checkpoint(slm, trained):
    result = slm("info", checkpoint("best", root=trained), "--json", "ckpt.json")
    assert result.status == 0, result.err
    facts = json.loads(Path("ckpt.json").read_text())
    assert facts["step"] == 12
    assert facts["model"]["n_embd"] == 16
    assert facts["tokenizer"]["n_vocab"] == 300
    assert f"data         {trained / 'stories.txt'}" in result.out
    assert "without embeddings" in result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "slm info without a folder"),
        (("nowhere",), "nowhere does not exist"),
        (("stories.txt",), "is not a checkpoint"),
        ((".",), "contains no manifest.json"),
        ((".", "--very"), "--very"),
        (("stories.txt", "--verify"), "--verify for the file"),
    ],
)
def test_mistakes_in_asking_are_explained(slm, words, expected):
    refuse(slm("info", *words), expected)


# ---- fine-tuning -------------------------------------------------------------------------


@pytest.fixture
def second(workplace):
    """A second corpus, in other words than the first."""
    stories = [f"The {a} king number {n} sleeps." for n in range(60) for a in ("old", "young")]
    (workplace / "second.txt").write_text("\n<|endoftext|>\n".join(stories))
    return workplace / "second.txt"


def test_fine_tuning_starts_from_the_weights_with_a_fresh_optimizer(slm, trained, second):
    """Neither shape nor vocabulary has to be said again."""
    ckpt = checkpoint("best", root=trained)
    words = ("--model.init_from", ckpt, "--data.source", second, "--data.batch_size", "4")
    words += ("--data.validation_share", "0.2", "--trainer.accelerator", "cpu")
    words += ("--trainer.max_steps", "4", "--val_interval", "4", "--trainer.log_every_n_steps", "1")
    result = slm("fit", *words, "--model.optimizer.lr", "1e-12")
    assert result.status == 0, result.err
    assert f"Weights    from {ckpt}" in result.err
    tuned, before = open_checkpoint(checkpoint("best")), open_checkpoint(ckpt)
    assert tuned.step == 4
    assert tuned.make_tokenizer().sha256 == before.make_tokenizer().sha256
    assert "init_from" not in tuned.model_options
    first, last = before.make_model().state_dict(), tuned.make_model().state_dict()
    assert all(torch.allclose(first[name], last[name], atol=1e-6) for name in first)
    moments = tuned.contents["optimizer_states"][0]["state"][0]
    assert int(moments["step"]) == 4

    # It needs nothing but itself, to generate, measure and continue.
    Path(ckpt).rename(trained / "away.ckpt")
    try:
        assert slm("predict", "--ckpt_path", checkpoint("best")).status == 0
        assert slm("validate", "--ckpt_path", checkpoint("best")).status == 0
        again = slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "6")
        assert again.status == 0, again.err
        assert open_checkpoint(checkpoint("last")).step == 6
    finally:
        (trained / "away.ckpt").rename(ckpt)


def test_fine_tuning_is_ahead_of_a_fresh_model_from_the_first_step_on(slm, workplace):
    assert slm("fit", "--config", "tiny.yaml", "--trainer.max_steps", "100").status == 0
    other = [story.replace("cat", "wolf").replace("happy", "sad") for story in make_stories(200, 7)]
    (workplace / "second.txt").write_text("\n<|endoftext|>\n".join(other))
    plan = ("fit", "--config", "tiny.yaml", "--trainer.log_every_n_steps", "1")
    plan += ("--data.tokenizer", checkpoint("last"), "--data.source", "second.txt")
    tuned = slm(*plan, "--model.init_from", checkpoint("last"))
    fresh = slm(*plan)
    assert (tuned.status, fresh.status) == (0, 0), tuned.err + fresh.err
    losses = [
        read_run(checkpoint("last", n).parent.parent).scalars["train_loss"][1].tolist()
        for n in (1, 2)
    ]
    assert len(losses[0]) == len(losses[1]) == 12
    assert all(a < b for a, b in zip(*losses, strict=True)), losses


def test_fine_tuning_in_another_vocabulary_says_how_to_prepare_the_data(slm, trained, second):
    ckpt = checkpoint("best", root=trained)
    plan = ("--config", "tiny.yaml", "--data.source", second, "--model.init_from", ckpt)
    result = slm("fit", *plan)
    refuse(result, "vocabulary of 300 tokens is not the one", f"--data.tokenizer {ckpt}")
    assert not Path("data").exists(), "said before anything is prepared"
    (remedy,) = re.findall(r"prepare the data with it: (.*)", result.err)
    result = slm("fit", *plan, *remedy.split())
    assert result.status == 0, result.err
    refuse(slm("fit", *plan, "--data.tokenizer", "gpt2", "--data.vocab_size", "50257"), "gpt2")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model.init_from", "none.ckpt"), "none.ckpt is not there"),
        (("--model.gpt.n_layer", "3"), "--model.gpt.n_layer 3 for a checkpoint with n_layer 2"),
        (("--model.gpt.block_size", "8"), "--model.gpt.block_size 16"),
    ],
)
def test_mistakes_in_fine_tuning_are_explained(slm, trained, second, words, expected):
    ckpt = checkpoint("best", root=trained)
    plan = ("fit", "--data.source", second, "--model.init_from", ckpt, "--trainer.max_steps", "2")
    refuse(slm(*plan, *words), expected)


def test_weights_to_start_from_can_be_named_in_a_config(slm, trained, second):
    ckpt = checkpoint("best", root=trained)
    text = Path("tiny.yaml").read_text().replace("model:\n", f"model:\n  init_from: {ckpt}\n")
    Path("tuned.yaml").write_text(text.replace("tokenizer: bpe", f"tokenizer: {ckpt}"))
    result = slm("fit", "--config", "tuned.yaml", "--data.source", second)
    assert result.status == 0, result.err
    assert f"Weights    from {ckpt}" in result.err
    Path("wrong.yaml").write_text(text.replace("n_layer: 2", "n_layer: 3"))
    refuse(slm("fit", "--config", "wrong.yaml", "--data.tokenizer", ckpt), "--model.gpt.n_layer 2")


def test_a_model_with_its_own_vocabulary_is_measured_on_other_stories(slm, trained, second):
    """Which are prepared in that vocabulary, without an option."""
    ckpt = checkpoint("best", root=trained)
    result = slm("validate", "--ckpt_path", ckpt, "--data.source", second, "--data.root", "other")
    assert result.status == 0, result.err
    assert str(second) in result.out
    (folder,) = Path("other").iterdir()
    assert Tokenizer.load(folder / "tokenizer.json").sha256 == (
        open_checkpoint(ckpt).make_tokenizer().sha256
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_parse_and_fit_their_models(slm, config):
    result = slm("fit", "--config", config, "--print_config")
    assert result.status == 0, result.err
    options = yaml.safe_load(result.out)
    gpt, data = options["model"]["gpt"], options["data"]
    assert gpt["vocab_size"] == data["vocab_size"]
    assert options["trainer"]["max_steps"] > 0


# ---- help ------------------------------------------------------------------------------


def test_the_overview_names_every_verb(slm):
    for words in ([], ["--help"], ["help"]):
        result = slm(*words)
        assert result.status == 0
        assert all(f"  {verb} " in result.out for verb in VERBS)
    assert slm("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("verb", "option", "words"),
    [
        ("prepare", "--data.tokenizer", "slm prepare [--config FILE]"),
        ("fit", "--model.gpt.n_layer", "Number of transformer blocks"),
        ("fit", "--model.optimizer.lr", "Peak learning rate"),
        ("fit", "--data.source", "hub:OWNER/NAME"),
        ("fit", "--val_interval", "Optimizer steps between two validations"),
        ("fit", "--trainer.precision", "bf16-mixed where the device multiplies it natively"),
        ("predict", "--temperature", "Divides the logits"),
        ("predict", "--num_samples", "Stories per prompt"),
        ("validate", "--json", "Also write the metrics"),
    ],
)
def test_help_explains_the_options(slm, verb, option, words):
    result = slm(verb, "--help")
    assert result.status == 0
    assert option in result.out
    assert words in " ".join(result.out.split())


# ---- budgets ---------------------------------------------------------------------------


def test_an_option_wins_over_a_config_wherever_it_stands(slm, workplace):
    result = slm("fit", "--trainer.max_steps", "3", "--config", "tiny.yaml", "--print_config")
    assert result.status == 0, result.err
    assert yaml.safe_load(result.out)["trainer"]["max_steps"] == 3


@pytest.mark.parametrize("words", [("--config",), ("--prompt", "Hi", "--config"), ("--config", "")])
def test_a_config_without_a_name_is_a_mistake(slm, words):
    refuse(slm("predict", *words), "--config without a file")


def test_without_a_terminal_progress_is_said_now_and_then(slm, workplace, monkeypatch):
    monkeypatch.setattr("slm.training.callbacks.progress.SAY_EVERY", 0.0)
    result = slm("fit", "--config", "tiny.yaml", "--trainer.accumulate_grad_batches", "3")
    assert result.status == 0, result.err
    lines = re.findall(r"step +(\d+) of 12  train_loss \d\.\d{4}  [\d,]+ tokens/s", result.err)
    assert lines == ["2", "4", "6", "8", "10", "12"]


def test_a_budget_is_planned_kept_and_resumed(slm, workplace):
    """The clock is tested in test_budget; here that it reaches the run, and a resumed one."""
    words = ("--data.source", "stories.txt", "--data.validation_share", "0.2")
    words += ("--val_interval", "1000")  # what goes with one takes a second on a busy machine
    result = slm("fit", "--config", "tiny.yaml", "--budget", "2s", *words)
    assert result.status == 0, result.err
    for part in ("Planning   2 s", "Budget     2 s", "steps    about", "tokens/s"):
        assert part in result.err
    assert "Trained    " in result.out
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert config["budget"] == "2s"
    assert config["model"]["gpt"]["n_embd"] == 16, "the config says the model"
    steps = open_checkpoint(checkpoint("last")).step
    assert steps > 12, "max_steps of the config does not end it"

    refuse(slm("fit", "--ckpt_path", "last"), "has already been trained for", "--budget ")
    more_steps = ("--trainer.max_steps", str(steps + 2))
    refuse(slm("fit", "--ckpt_path", "last", *more_steps), "budget of 2s", "--budget null")
    more = slm("fit", "--ckpt_path", "last", "--budget", "3s")
    assert more.status == 0, more.err
    assert "Planning" not in more.err
    assert "budget 2 s -> 3 s" in more.err
    before, steps = steps, open_checkpoint(checkpoint("last")).step
    assert steps > before
    by_steps = slm(
        "fit", "--ckpt_path", "last", "--budget", "null", "--trainer.max_steps", str(steps + 2)
    )
    assert by_steps.status == 0, by_steps.err
    assert open_checkpoint(checkpoint("last")).step == steps + 2


@pytest.mark.parametrize(
    "mistake",
    [
        ("--data.source", "nowhere"),
        ("--model.gpt.vocab_size", "301"),
        ("--model.gpt.n_embd", "17"),
        ("--model.optimizer.lr", "0"),
        pytest.param(
            ("--trainer.accelerator", "cuda"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(slm, workplace, mistake):
    result = slm("fit", "--config", "tiny.yaml", "--budget", "5m", *mistake)
    refuse(result, mistake[1])
    assert "Planning" not in result.err
    assert not any(Path("data").glob("*/train.bin")), "nor prepared"


def test_without_a_config_a_budget_chooses_the_model(slm, workplace, monkeypatch):
    from slm.commands.fit import plan

    monkeypatch.setattr(plan, "SIZES", ((1, 1, 64), (2, 1, 64)))
    words = ("--data.source", "stories.txt", "--data.validation_share", "0.2")
    small = ("--data.vocab_size", "300", "--model.gpt.vocab_size", "300")
    small += ("--model.gpt.block_size", "32", "--trainer.accelerator", "cpu")
    result = slm("fit", "--budget", "1s", *words, *small)
    assert result.status == 0, result.err
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert config["model"]["gpt"]["n_embd"] == 64
    assert config["model"]["gpt"]["n_layer"] in (1, 2)
    assert config["model"]["optimizer"]["name"] == "muon"
    size = ("--model.gpt.n_layer", "1", "--model.gpt.n_embd", "32", "--model.gpt.n_head", "2")
    assert slm("fit", "--budget", "1s", *words, *small, *size).status == 0
    config = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())
    assert config["model"]["gpt"]["n_embd"] == 32, "a size that is given is kept"
    assert config["model"]["optimizer"]["name"] == "muon"


# ---- mistakes --------------------------------------------------------------------------


def fit(*words):
    return ("fit", "--config", "tiny.yaml", *words)


MISTAKES = {
    "an unknown verb": (("fti",), "there is no verb 'fti'", "slm fit"),
    "a missing config": (("fit", "--config", "smal.yaml"), "smal.yaml", "configs/small.yaml"),
    "an unknown option": (fit("--model.gpt.n_layers", "3"), "--model.gpt.n_layers", "n_layer"),
    "an option cut short": (fit("--model.gpt.n_emb", "64"), "--model.gpt.n_emb", "n_embd"),
    "a word without an option": (fit("Tom"), "belongs to no option: Tom"),
    "an unknown section": (fit("--modle.compile", "true"), "--modle.compile"),
    "an option without a value": (fit("--trainer.max_steps"), "max_steps"),
    "a wrong type": (fit("--model.gpt.n_layer", "six"), "--model.gpt.n_layer is six", "int"),
    "a wrong choice": (fit("--data.tokenizer", "gpt5"), "gpt5", "gpt2, bpe, or"),
    "heads that do not divide": (fit("--model.gpt.n_embd", "17"), "n_embd 17", "n_head 2"),
    "no steps": (fit("--trainer.max_steps", "-1"), "--trainer.max_steps 1000"),
    "an interval of batches": (fit("--trainer.val_check_interval", "5"), "--val_interval"),
    "an interval of none": (fit("--val_interval", "0"), "--val_interval 0"),
    "a missing source": (fit("--data.source", "nowhere"), "nowhere does not exist", "builtin"),
    "a context longer than the data": (fit("--model.gpt.block_size", "99999"), "contains"),
    "vocabularies that differ": (fit("--model.gpt.vocab_size", "301"), "vocab_size 300"),
    "a checkpoint that is not there": (fit("--ckpt_path", "no.ckpt"), "no.ckpt is not there"),
    "a checkpoint that is none": (fit("--ckpt_path", "stories.txt"), "is not a checkpoint"),
    "no run to resume": (fit("--ckpt_path", "last"), "there is no run", "lightning_logs"),
    "no run to generate from": (("predict",), "there is no run", "slm fit --config"),
    "no run to measure": (("validate",), "there is no run"),
    "a seed below zero": (fit("--seed_everything", "-1"), "--seed_everything -1"),
    "a log interval of none": (fit("--trainer.log_every_n_steps", "0"), "log_every_n_steps 0"),
    "no accumulation": (fit("--trainer.accumulate_grad_batches", "0"), "accumulate_grad_batches 0"),
    "another clipping": (fit("--trainer.gradient_clip_algorithm", "value"), "norm, the only"),
    "a checkpoint left unsaid": (fit("--ckpt_path"), "--ckpt_path without a value"),
    "no such accelerator": (fit("--trainer.accelerator", "tpu"), "is tpu", "auto, cpu, gpu"),
    "no GPU": (fit("--trainer.accelerator", "cuda"), "no such device", "cpu, or auto"),
    "no learning rate": (fit("--model.optimizer.lr", "0"), "lr is 0"),
    "no time": (fit("--budget", "0s"), "--budget 0s", "--budget 20m"),
    "a time without a unit": (fit("--budget", "20"), "--budget 20", "90s, 20m or 1h30m"),
    "a time and a number of steps": (
        fit("--budget", "3s", "--trainer.max_steps", "9"),
        "--trainer.max_steps in a run with a budget of 3s",
        "--budget null",
    ),
    "a time and a maximal time": (
        fit("--budget", "3s", "--trainer.max_time", "00:00:00:01"),
        "--trainer.max_time in a run",
    ),
    "a time without a GPU": (
        fit("--budget", "3s", "--trainer.accelerator", "cuda"),
        "no such device",
    ),
    "a rate of another optimizer": (
        fit("--model.optimizer.muon_lr", "0.1"),
        "muon_lr has no effect with name adamw",
    ),
    "a share of another schedule": (
        fit("--model.optimizer.cooldown_share", "0.1"),
        "cooldown_share has no effect with schedule cosine",
    ),
    "a time on two devices": (fit("--budget", "3s", "--trainer.devices", "2"), "one device"),
    "a time for a wrong shape": (fit("--budget", "3s", "--model.gpt.n_embd", "17"), "n_embd 17"),
    "a time for no batch": (fit("--budget", "3s", "--data.batch_size", "0"), "batch_size 0"),
    "a time for no steps": (
        fit("--budget", "3s", "--trainer.accumulate_grad_batches", "0"),
        "accumulate_grad_batches 0",
    ),
    "no such optimizer": (fit("--model.optimizer.name", "sgd"), "optimizer.name is sgd", "muon"),
    "no such positions": (fit("--model.gpt.position", "none"), "position is none", "rotary"),
    "a batch of none": (fit("--data.batch_size", "0"), "--data.batch_size 0"),
}


if torch.cuda.is_available():
    del MISTAKES["no GPU"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained(slm, mistake):
    words, *expected = MISTAKES[mistake]
    refuse(slm(*words), *expected)


def test_a_broken_config_file_is_explained(slm, workplace):
    (workplace / "broken.yaml").write_text("model: {gpt: [")
    refuse(slm("fit", "--config", "broken.yaml"))
    (workplace / "unknown.yaml").write_text("model:\n  layers: 3\n")
    refuse(slm("fit", "--config", "unknown.yaml"), "layers")
    (workplace / "near.yaml").write_text("model:\n  gpt:\n    n_layers: 3\n")
    refuse(slm("fit", "--config", "near.yaml"), "n_layers", "--model.gpt.n_layer, perhaps?")


def test_a_checkpoint_named_in_a_config_file_is_refused(slm, workplace):
    text = (workplace / "tiny.yaml").read_text()
    (workplace / "named.yaml").write_text(f"{text}ckpt_path: some.ckpt\n")
    refuse(slm("fit", "--config", "named.yaml"), "--ckpt_path some.ckpt")


def test_too_few_stories_to_hold_one_out_are_explained(slm, workplace):
    (workplace / "stories.txt").write_text("\n<|endoftext|>\n".join(make_stories(5)))
    result = slm(*fit("--data.validation_share", "0.001"))
    refuse(result, "validation split", "--data.validation_share 0.2")


def test_a_run_stopped_by_its_time_says_so(slm):
    result = slm(*fit("--trainer.max_steps", "100000", "--trainer.max_time", "00:00:00:02"))
    assert result.status == 0, result.err
    assert "of 100,000. To continue: slm fit --ckpt_path last" in result.out
    step = open_checkpoint(checkpoint("last")).step
    assert step > 0
    assert f"step {step:>6,}  " in result.err, "its last step is validated"


def test_a_run_without_validation_says_so(slm):
    result = slm(*fit("--trainer.limit_val_batches", "0"))
    assert result.status == 0, result.err
    assert "Best       none" in result.out
    assert open_checkpoint(checkpoint("last")).step == 12


def test_an_empty_corpus_is_explained(slm, workplace):
    (workplace / "stories.txt").write_text("")
    refuse(slm(*fit()), "contains no story")


def test_someone_elses_checkpoint_is_explained(slm, workplace):
    torch.save({"state_dict": {}}, workplace / "other.ckpt")
    for verb in ("predict", "validate"):
        refuse(slm(verb, "--ckpt_path", "other.ckpt"), "no checkpoint of this project")


def test_a_cut_checkpoint_is_explained(slm, trained, workplace):
    data = checkpoint("best", root=trained).read_bytes()
    (workplace / "cut.ckpt").write_bytes(data[: len(data) // 2])
    refuse(
        slm("predict", "--ckpt_path", "cut.ckpt"),
        "cut.ckpt is not a checkpoint, or an incomplete one",
    )


def test_another_shape_than_the_checkpoints_is_explained(slm, trained):
    ckpt = checkpoint("best", root=trained)
    refuse(slm("validate", "--ckpt_path", ckpt, "--model.gpt.n_layer", "3"), "n_layer 2")


def test_a_finished_run_is_not_resumed_without_more_steps(slm, trained):
    ckpt = checkpoint("last", root=trained)
    refuse(slm(*fit("--ckpt_path", ckpt)), "already been trained for 12 steps", "max_steps 24")


def test_without_a_network_the_hub_is_given_up_within_ten_seconds(workplace):
    """The whole command, from a cold process, against an address where nothing listens."""
    import time

    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "slm.cli", "fit", "--config", "configs/small.yaml"],
        cwd=workplace, capture_output=True, text=True,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(workplace / "hf")},
    )  # fmt: skip
    seconds = time.monotonic() - start
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "http://127.0.0.1:9 did not answer" in done.stderr
    assert "--data.source builtin" in done.stderr
    assert seconds < 30, "the bound itself is 10 s on an idle machine"


# ---- configs ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_head_of_a_config_tells_its_models_size(config):
    text = config.read_text(encoding="utf-8")
    counts = GPT(GPTConfig(**yaml.safe_load(text)["model"]["gpt"])).parameter_counts()
    head = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    for number, words in (
        (counts.without_embeddings, "parameters without embeddings"),
        (counts.tied, "in all (tied)"),
        (counts.untied, "untied"),
    ):
        assert f"{number / 1e6:.2f} M {words}" in head
    readme = (config.parent.parent / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| `{config.stem}.yaml`"))
    for number in (counts.without_embeddings, counts.tied, counts.untied):
        assert f" {number / 1e6:.2f} M " in row


def test_packaged_configs_are_found_from_anywhere(workplace):
    def found(*arguments):
        return list(Arguments(arguments).with_configs_found())

    for name in ("small", "small.yaml", "configs/small.yaml"):
        (argument,) = found(f"--config={name}")
        path = Path(argument.removeprefix("--config="))
        assert path.name == "small.yaml"
        assert path.is_file()
    assert found("--prompt", "Hi", "-c", "tiny.yaml") == ["--config=tiny.yaml", "--prompt", "Hi"]
    with pytest.raises(UserError, match=r"elsewhere/small\.yaml does not exist"):
        found("--config", "elsewhere/small.yaml")
