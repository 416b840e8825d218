"""Commands under unusual terminals, shells, configs and environments.

Most cases come from public bug reports of similar projects.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import TINY, checkpoint, refuse

from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.configs import find_config, read_config
from slm.errors import UserError
from slm.files import json_text, parse_json
from slm.printable import printable
from slm.reports.page import folded
from slm.training.runs import Run, RunClaim

COMMAND = f"{shlex.quote(sys.executable)} -m slm.cli"
RESULT = "lightning_logs/version_0/checkpoints/best.ckpt"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of a folder with a trained run."""
    folder = tmp_path / "place"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def shell(line, **environment):
    """A line of bash, in which `$SLM` is the command."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "SLM": COMMAND} | environment
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=env, check=False)
    return (
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


# ---- options that Lightning would accept ----------------------------------------------------

MEANINGLESS = {
    "gradient_clip_val": ("-1", "-0.5"),
    "limit_train_batches": ("10", "1", "0", "0.5"),
    "overfit_batches": ("1", "0.5"),
    "max_epochs": ("2", "0"),
    "min_epochs": ("1",),
    "min_steps": ("50", "-1"),
    "check_val_every_n_epoch": ("1",),
    "reload_dataloaders_every_n_epochs": ("1",),
    "max_time": ("00:00:00:00",),
    "barebones": ("true",),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, each in MEANINGLESS.items() for value in each]
)
def test_trainer_options_without_meaning_are_refused(slm, workplace, name, value):
    result = slm("fit", "--config", "tiny.yaml", f"--trainer.{name}", value)
    refuse(result, f"--trainer.{name}")
    assert not (workplace / "lightning_logs").exists()


@pytest.mark.parametrize("option", ["limit_train_batches=1.0", "limit_train_batches=null",
                                    "gradient_clip_val=0", "overfit_batches=0.0",
                                    "max_epochs=-1"])  # fmt: skip
def test_their_neutral_values_are_accepted(slm, workplace, option):
    assert slm("fit", "--config", "tiny.yaml", f"--trainer.{option}").status == 0


@pytest.mark.parametrize("seed", ["true", "false", "-1", str(2**32)])
def test_one_seed_or_none(slm, seed):
    refuse(slm("fit", "--config", "tiny.yaml", "--seed_everything", seed), "--seed_everything")


def test_without_a_logger_no_checkpoint_is_overwritten(slm, workplace):
    fit = ("fit", "--config", "tiny.yaml", "--trainer.logger", "false")
    refuse(slm(*fit), "--trainer.enable_checkpointing false")
    assert slm(*fit, "--trainer.enable_checkpointing", "false").status == 0
    assert slm("fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true").status == 0
    assert not list(workplace.rglob("*.ckpt"))


def test_a_time_limit_holds_for_each_process(slm, workplace):
    fit = ("--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "1000000")
    assert slm("fit", "--config", "tiny.yaml", *fit).status == 0
    first = torch.load(checkpoint(), weights_only=True)["global_step"]
    assert slm("fit", "--ckpt_path", "last", *fit).status == 0
    assert torch.load(checkpoint(), weights_only=True)["global_step"] > first > 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--trainer.logger", "CSVLogger"), "add --trainer.logger.save_dir"),
        (("--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.foo", "3"), "'foo'"),
        (("--trainer.logger", "TensorBoardLogger"), "add --trainer.logger.save_dir"),
    ],
)
def test_errors_within_a_class_are_named(slm, options, expected):
    result = slm("fit", "--config", "tiny.yaml", *options)
    refuse(result, expected)
    assert "Namespace" not in result.err


# ---- configs ------------------------------------------------------------------------------

TWICE = {
    "a section": (TINY + "data:\n  batch_size: 2\n", "key data on line 7 is repeated"),
    "an option": (TINY.replace("  batch_size: 4", "  batch_size: 4\n  batch_size: 8"), "line 12"),
    "within braces": (TINY.replace("n_layer: 2", "n_layer: 2, n_layer: 3"), "line 5"),
    "in an odd key's": (TINY + "? [a, b]\n: {c: 1, c: 2}\n", "key c on line"),
    "in a list": (TINY + "x:\n- {a: 1, a: 2}\n", "key a on line"),
}
VERBS = [("fit",), ("prepare",), ("predict",), ("bench", "train"), ("bench", "generate")]


@pytest.mark.parametrize("verb", VERBS, ids="-".join)
@pytest.mark.parametrize("kind", TWICE)
def test_a_key_twice_in_a_config(slm, workplace, kind, verb):
    text, expected = TWICE[kind]
    (workplace / "twice.yaml").write_text(text)
    refuse(slm(*verb, "--config", "twice.yaml"), "twice.yaml", expected, "merge the two")


@pytest.mark.parametrize("verb", VERBS, ids="-".join)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_a_config_that_is_not_utf8(slm, workplace, encoding, verb):
    (workplace / "odd.yaml").write_bytes((TINY + "# naïve\n").encode(encoding))
    iconv = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "cp1252": "WINDOWS-1252"}
    refuse(slm(*verb, "--config", "odd.yaml"), f"iconv -f {iconv.get(encoding, 'UTF-16')} ")


def test_a_config_with_a_mark_and_aliases_is_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &x {k: 1}\nb: [*x, *x]\n", encoding="utf-8-sig")
    assert read_config(path) == {"a": {"k": 1}, "b": [{"k": 1}, {"k": 1}]}
    path.write_text("a: &a {k: 1}\nb: &b {l: 2}\nc:\n  <<: *a\n  <<: *b\nd: \ufffd\n", "utf-8")
    assert read_config(path)["d"] == "\ufffd"
    path.write_text("data:\n")
    assert read_config(path) == {"data": None}
    doubled = (f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    path.write_text("a0: &a0 [x]\n" + "".join(doubled))
    assert len(read_config(path)) == 60  # a tree of 2^60 nodes, a graph of 60


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-1", 0.1), ("2E-1", 0.2), ("0454", 300), ("2024-01-01", "2024-01-01"), ("no", False)],
)
def test_every_verb_reads_a_config_by_the_same_rules(tmp_path, text, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"x: {text}\n")
    assert read_config(path) == {"x": value}


@pytest.mark.parametrize("verb", [("fit",), ("prepare",)])
@pytest.mark.parametrize("option", ["text_column: no", "source: 3", "vocab_size: 1.5"])
def test_every_verb_refuses_the_same_types(slm, workplace, verb, option):
    (workplace / "odd.yaml").write_text(f"data:\n  {option}\ntrainer: {{max_steps: 3}}\n")
    refuse(slm(*verb, "--config", "odd.yaml"), f"--data.{option.partition(':')[0]}")


def test_a_number_with_an_exponent_reaches_every_verb(slm, workplace):
    text = TINY.replace("validation_share: 0.2", "validation_share: 2e-1")
    (workplace / "tiny.yaml").write_text(text)
    assert slm("prepare", "--config", "tiny.yaml").status == 0
    assert slm("fit", "--config", "tiny.yaml").status == 0
    config = yaml.safe_load(next(workplace.rglob("version_0/config.yaml")).read_text())
    assert config["data"]["validation_share"] == 0.2


def test_names_that_are_too_long(slm):
    for verb in VERBS:
        refuse(slm(*verb, "--config", "a" * 300), "too long")


# ---- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-Hello", "---", "-1e-2", "-", "- a"])
def test_values_may_begin_with_a_dash(text):
    arguments = Arguments(["--prompt", text, "--seed", "3"])
    assert list(arguments) == [f"--prompt={text}", "--seed", "3"]
    assert arguments.get("--prompt") == text


@pytest.mark.parametrize("option", ["--seed", "--Seed=3", "-h", "-c", "-c=x.yaml", "--"])
def test_options_remain_options(option):
    assert list(Arguments(["--verify", option])) == ["--verify", option]


def test_a_story_may_begin_with_a_dash(slm, place):
    told = slm("predict", "--prompt", "-Hello", "--stop", "---", "--max_new_tokens", "4")
    assert told.status == 0
    assert told.out.startswith("-Hello")
    refuse(slm("prepare", "--data.source", "stories.txt", "--data.validation_share", "-1e-2"),
           "--data.validation_share -0.01")  # fmt: skip


def test_a_single_value_is_a_list_of_one(slm, place):
    bench = ("bench", "generate", "--tokens", "4", "--repeats", "1", "--cold", "false",
             "--loss_tokens", "0")  # fmt: skip
    for one in (("--weights", "fp32", "--stories", "2"), ("--weights", "[fp32]", "--stories", "2")):
        result = slm(*bench, *one)
        assert result.status == 0, result.err
        assert "slm fp32" in result.out + result.err
    refuse(slm(*bench, "--weights", "fp31"), "--weights is fp31")


@pytest.mark.parametrize("folder", ["my stories", "it's", "a;b", "$HOME"])
def test_printed_commands_can_be_pasted(slm, workplace, folder):
    result = slm("fit", "--config", "tiny.yaml", "--trainer.default_root_dir", folder)
    line = next(line for line in result.out.splitlines() if line.startswith("Stories"))
    status, out, err = shell(line.removeprefix("Stories").strip().replace("slm", "$SLM", 1))
    assert (status, out.startswith("Once upon a time")) == (0, True), err
    hint = slm("report", workplace / folder / "lightning_logs").err
    assert shlex.quote(f"{workplace / folder}/lightning_logs/version_0") in hint


def test_the_hint_to_resume_names_the_folder_of_runs(slm):
    result = slm("fit", "--config", "tiny.yaml", "--trainer.default_root_dir", "my runs",
                 "--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "1000000")  # fmt: skip
    assert "slm fit --ckpt_path last --trainer.default_root_dir 'my runs'" in result.out


# ---- streams and the environment ----------------------------------------------------------

ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_output_that_is_not_utf8(place, kind):
    (place / "naïve.txt").write_bytes((place / "stories.txt").read_bytes())
    status, out, err = shell("$SLM prepare --data.source naïve.txt", **ENVIRONMENTS[kind])
    assert (status, "validation" in out) == (0, True), err
    predict = "$SLM predict --prompt “Hi” --max_new_tokens 30"
    status, out, err = shell(predict, **ENVIRONMENTS[kind])
    assert status == 0, err
    assert "Hi" in out
    assert len(out) > 12


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(place, closed):
    shutil.rmtree(place / "data", ignore_errors=True)
    assert shell(f"$SLM prepare --config tiny.yaml {closed}")[0] == 0
    assert list(place.glob("data/*/train.bin"))
    status, out, _ = shell(f"$SLM predict --max_new_tokens 4 {closed}")
    assert status == 0
    assert (">&-" in closed.replace("2>&-", "")) != ("Once" in out)


def test_a_reader_of_messages_does_not_end_the_work(place):
    shutil.rmtree(place / "data", ignore_errors=True)
    status, *_ = shell("$SLM prepare --config tiny.yaml 2>&1 | true; exit ${PIPESTATUS[0]}")
    assert status == 0
    assert list(place.glob("data/*/train.bin"))
    fit = "$SLM fit --config tiny.yaml 2>&1 | head -1; exit ${PIPESTATUS[0]}"
    assert shell(fit)[0] == 0
    assert torch.load(checkpoint(version=1), weights_only=True)["global_step"] == 12
    status, _, err = shell("$SLM predict --num_samples 50 | true; exit ${PIPESTATUS[0]}")
    assert (status, "Traceback" in err) == (0, False), err


LEFT_OVER = {
    "a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "a rank": {"RANK": "1"},
    "a local rank": {"LOCAL_RANK": "1"},
    "both, and a world of one": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "1"},
    "a SLURM allocation": {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"},
}


@pytest.mark.parametrize("kind", LEFT_OVER)
def test_variables_left_over_in_the_environment(place, kind):
    status, out, err = shell("$SLM fit --config tiny.yaml", **LEFT_OVER[kind])
    assert status == 0, err
    assert "Loss       lightning_logs/version_1/loss.png" in out
    assert (place / "lightning_logs/version_1/record.json").is_file()
    assert "val_loss" in err
    assert ("Ignored    " in err) == ("rank" in kind or "world" in kind)


@pytest.mark.parametrize("verb", ["fit --config tiny.yaml", "validate"])
@pytest.mark.parametrize("more", [{}, {"TORCHELASTIC_RUN_ID": "x"}])
def test_a_rank_among_others_that_are_not_there(place, verb, more):
    several = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    status, _, err = shell(f"$SLM {verb}", **several, **more)
    assert (status, "unset RANK LOCAL_RANK WORLD_SIZE" in err) == (2, True), err


def test_a_cache_folder_that_cannot_be_made(place):
    status, _, err = shell(
        "$SLM fit --config tiny.yaml --model.compile true", TORCHINDUCTOR_CACHE_DIR="/proc/x"
    )
    assert (status, "unset TORCHINDUCTOR_CACHE_DIR" in err) == (2, True), err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(place):
    odd = os.fsdecode(b"b\xef")
    shutil.copy("stories.txt", f"{odd}.txt")
    for line in ("prepare --data.source {}.txt", "predict --max_new_tokens 3 --out {}.jsonl",
                 "validate --json {}.json"):  # fmt: skip
        status, _, err = shell("$SLM " + line.format("$'b\\xef'"))
        assert status == 0, err
    assert os.path.exists(f"{odd}.jsonl")
    line = "$SLM fit --config tiny.yaml --trainer.default_root_dir $'b\\xef'"
    status, _, err = shell(line)
    assert (status, "is not UTF-8" in err, "Traceback" in err) == (2, True, False), err


HARMFUL = {
    "\x1b[2J": r"\x1b[2J",
    "\r": r"\r",
    "\x08": r"\x08",
    "\u202e": r"\u202e",
    "\x9b": r"\x9b",
}


@pytest.mark.parametrize("character", HARMFUL, ids=ascii)
def test_control_characters_reach_neither_terminal_nor_report(slm, place, character):
    shown = HARMFUL[character]
    assert printable(f"a{character}b\tc\r\n") == f"a{shown}b\tc\r\n"
    result = slm("predict", "--prompt", f"a{character}b", "--max_new_tokens", "3")
    assert result.out.startswith(f"a{shown}b")
    assert character not in folded("step 1", f"a{character}b")
    gone = slm("info", f"a{character}b")
    assert gone.status == 2
    assert character not in gone.err


def test_control_characters_of_stories_are_not_printed_by_info(slm, workplace):
    stories = [f"A \x1b[2J{n}\u202e end." for n in range(50)]
    (workplace / "odd.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    assert slm("prepare", "--data.source", "odd.txt").status == 0
    out = slm("info", "data/odd-gpt2", "--json", "facts.json").out
    assert "\\x1b[2J" in out
    assert "\x1b" not in out
    assert "\x1b" in json.loads((workplace / "facts.json").read_text())["examples"][0]


# ---- files of a run -----------------------------------------------------------------------


def test_json_has_no_infinity(slm, place):
    changed = torch.load(RESULT, weights_only=True)
    for tensor in changed["state_dict"].values():
        tensor.mul_(1e4)
    torch.save(changed, "huge.ckpt")

    def refuse_constant(name):
        raise AssertionError(name)

    for verb, *options in (("validate",), ("test",), ("evaluate", "--pairs", "10")):
        line = (verb, "--ckpt_path", "huge.ckpt", "--json", f"{verb}.json", *options)
        assert slm(*line).status == 0
        plain = (place / f"{verb}.json").read_text()
        assert json.loads(plain, parse_constant=refuse_constant)
        assert "null" in plain
    plain = {"a": [1.0, math.inf, (math.nan,)], "b": "x", "c": True}
    assert json.loads(json_text(plain)) == {"a": [1.0, None, [None]], "b": "x", "c": True}


def test_json_that_is_nested_too_deeply(slm, place):
    with pytest.raises(ValueError, match="too deeply"):
        parse_json(DEEP)
    (place / "deep.jsonl").write_text(DEEP + "\n")
    refuse(slm("evaluate", "--generations", "deep.jsonl"), "line 1", "too deeply")
    (place / "out.jsonl.part").write_text(DEEP + "\n")
    refuse(slm("predict", "--out", "out.jsonl", "--max_new_tokens", "3"), "another command")
    for name in ("manifest.json", "tokenizer.json"):
        path = next(place.glob(f"data/*/{name}"))
        before = path.read_bytes()
        path.write_text(DEEP)
        refuse(slm("info", path.parent), name, "too deeply")
        path.write_bytes(before)
    for name in ("scorecard.json", "record.json"):
        (place / "lightning_logs/version_0" / name).write_text(DEEP)
    assert slm("report").status == 0
    unfinished = place / "half/unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "plan.json").write_text(DEEP)
    refuse(slm("info", "half"), "an unknown number of shards")


def spoil(contents, how):
    options = contents["hyper_parameters"]
    if how == "a weight is missing":
        del contents["state_dict"]["model.blocks.0.attention.qkv.weight"]
    elif how == "a weight has another shape":
        contents["state_dict"]["model.blocks.0.attention.qkv.weight"] = torch.zeros(3)
    elif how == "no weights":
        del contents["state_dict"]
    elif how == "a weight is no tensor":
        contents["state_dict"]["model.blocks.0.attention.qkv.weight"] = None
    elif how == "an entry is missing":
        del contents["slm"]["tokenizer"]
    elif how == "a newer option of the model":
        options["gpt"]["newer"] = 1
    elif how == "weights that are not finite":
        contents["state_dict"]["model.blocks.1.mlp.up.weight"][3, 3] = math.nan
    else:
        contents["state_dict"]["model.blocks.1.mlp.up.weight"][3, 3] = math.inf


DAMAGE = {
    "a weight is missing": "blocks.0.attention.qkv.weight",
    "a weight has another shape": "blocks.0.attention.qkv.weight",
    "an entry is missing": "tokenizer",
    "no weights": "state_dict",
    "a weight is no tensor": "blocks.0.attention.qkv.weight",
    "a newer option of the model": "newer version",
    "weights that are not finite": "not finite",
    "an infinite weight": "not finite",
    "zeros in the middle": "checksum",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_checkpoints(slm, place, how):
    path = place / "odd.ckpt"
    contents = torch.load(RESULT, weights_only=True)
    if how == "zeros in the middle":
        data = bytearray((place / RESULT).read_bytes())
        weight = contents["state_dict"]["model.blocks.0.mlp.up.weight"].numpy().tobytes()
        start = data.index(weight)
        data[start : start + len(weight)] = bytes(len(weight))
        path.write_bytes(data)
    else:
        spoil(contents, how)
        torch.save(contents, path)
    for verb in (("predict",), ("validate",), ("evaluate", "--pairs", "10"),
                 ("fit", "--trainer.max_steps", "20")):  # fmt: skip
        refuse(slm(*verb, "--ckpt_path", "odd.ckpt"), "odd.ckpt", DAMAGE[how])
    assert slm("info", "odd.ckpt").status in (0, 2)


@pytest.mark.parametrize(
    "section", ["hyper_parameters", "datamodule_hyper_parameters", "optimizer"]
)
def test_options_of_a_newer_version(slm, place, section):
    contents = torch.load(RESULT, weights_only=True)
    (contents["hyper_parameters"] | contents)[section]["newer"] = 3
    torch.save(contents, "odd.ckpt")
    for verb in ("validate", "fit"):
        refuse(slm(verb, "--ckpt_path", "odd.ckpt"), "newer version")


@pytest.mark.parametrize("key", ["callbacks", "loops", "optimizer_states", "lr_schedulers"])
def test_what_only_a_resumed_run_needs(slm, place, key):
    contents = torch.load(RESULT, weights_only=True)
    del contents[key]
    torch.save(contents, "odd.ckpt")
    refuse(slm("fit", "--ckpt_path", "odd.ckpt", "--trainer.max_steps", "20"), key, "init_from")
    assert slm("predict", "--ckpt_path", "odd.ckpt", "--max_new_tokens", "3").status == 0


def test_configs_of_a_run_are_numbered_not_counted(slm, place):
    for steps in (20, 30):
        assert slm("fit", "--ckpt_path", "last", "--trainer.max_steps", steps).status == 0
    run = Run(place / "lightning_logs/version_0")
    (run.folder / "config-2.yaml").unlink()
    (run.folder / "config-old.yaml").write_text("x: 1\n")
    assert slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "40").status == 0
    names = [path.name for path in run.configs()]
    assert names == ["config.yaml", "config-3.yaml", "config-4.yaml"]
    os.utime(run.folder / "config.yaml")
    assert slm("report").status == 0
    page = (run.folder / "report.html").read_text()
    assert "max_steps: 40" in page
    assert "max_steps: 12" not in page


def test_touching_a_file_does_not_make_a_run_the_newest(slm, place):
    assert slm("fit", "--config", "tiny.yaml").status == 0
    for path in (place / "lightning_logs/version_0").rglob("*"):
        os.utime(path)
    assert "version_1" in slm("predict", "--max_new_tokens", "3").err


def test_a_claim_names_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(UserError, match="not UTF-8"):
        RunClaim().create(tmp_path / os.fsdecode(b"\xff") / "lightning_logs")


def test_packaged_configs_repeat_no_key():
    for name in ("small", "medium", "quickstart"):
        assert read_config(find_config(name))
