"""The verb `predict`, as a person meets it."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from conftest import WEIGHTS, checkpoint, refuse
from filelock import FileLock

from slm import hardware
from slm.generation import compiled
from slm.printable import printable


def test_predict_needs_only_the_checkpoint(slm, trained, workplace):
    """No config, no data, another folder."""
    alone = workplace / "alone.ckpt"
    alone.write_bytes(checkpoint("best", root=trained).read_bytes())
    (workplace / "stories.txt").unlink()
    result = slm("predict", "--ckpt_path", alone, "--prompt", "Once")
    assert result.status == 0, result.err
    assert result.out.startswith("Once")
    assert not (workplace / "lightning_logs").exists()


def test_predict_without_a_checkpoint_takes_the_best_of_the_newest_run_and_says_so(slm, trained):
    result = slm("predict", "--trainer.default_root_dir", trained)
    assert result.status == 0, result.err
    assert "version_0/checkpoints/best.ckpt" in result.err
    assert result.out.startswith("Once upon a time")


def run(slm, trained, *words):
    ckpt = checkpoint("best", root=trained)
    result = slm("predict", "--ckpt_path", ckpt, "--trainer.accelerator", "cpu", *words)
    assert result.status == 0, result.err
    return result.out


def test_sampling_options_reach_the_sampler(slm, trained):
    """Nothing stored in the checkpoint stands above them."""
    first = run(slm, trained, "--temperature", "1.0")
    assert run(slm, trained, "--temperature", "1.0") == first
    assert run(slm, trained, "--temperature", "3.0") != first
    assert run(slm, trained, "--temperature", "1.0", "--seed", "9") != first
    greedy = run(slm, trained, "--temperature", "0")
    assert run(slm, trained, "--temperature", "0", "--seed", "9") == greedy
    assert run(slm, trained, "--top_k", "1") == greedy
    short = run(slm, trained, "--max_new_tokens", "3")
    assert len(short) < len(first)


def test_several_prompts_a_file_and_samples_go_to_json_lines(slm, trained, workplace):
    (workplace / "prompts.txt").write_text("A dog\n\nA fox: red\n")
    words = ("--prompt", "A cat", "--prompt_file", "prompts.txt", "--num_samples", "2")
    run(slm, trained, *words, "--out", "stories.jsonl")
    records = [
        json.loads(line) for line in Path("stories.jsonl").read_text().rstrip("\n").split("\n")
    ]
    assert [r["prompt"] for r in records] == ["A cat"] * 2 + ["A dog"] * 2 + ["A fox: red"] * 2
    assert [r["options"]["seed"] for r in records] == [1337, 1338] * 3
    assert all(r["story"].startswith(r["prompt"]) for r in records)
    assert records[0]["story"] != records[1]["story"]
    text = run(slm, trained, *words)
    for record in records:
        assert printable(record["story"]) in text


def test_a_story_is_the_same_alone_and_in_a_batch_of_any_size(slm, trained):
    words = ("--prompt", "A cat", "--prompt", "The old dog ran", "--num_samples", "3")
    several = [run(slm, trained, *words, "--batch_size", n) for n in (1, 2, 16)]
    assert several[0] == several[1] == several[2]
    for number in range(3):
        alone = run(slm, trained, "--prompt", "The old dog ran", "--seed", 1337 + number)
        assert f"--- story {4 + number} of 6\n{alone}" in several[0]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_kind_of_weights_tells_and_is_recorded(slm, trained, workplace, weights):
    run(slm, trained, "--weights", weights, "--out", "s.jsonl", "--max_new_tokens", "9")
    (record,) = map(json.loads, Path("s.jsonl").read_bytes().splitlines())
    assert record["weights"] == weights
    assert record["tokens"] <= 9
    assert record["log_probability"] < 0
    assert record["seconds"] > 0
    assert record["step"] == 12
    assert record["checkpoint"].endswith("best.ckpt")


def test_without_a_compiler_compiling_is_explained(slm, trained, workplace, monkeypatch):
    monkeypatch.setattr(hardware, "COMPILER", "no-such-compiler")
    words = ("--ckpt_path", checkpoint("best", root=trained), "--trainer.accelerator", "cpu")
    for verb in (("predict", "--weights", "int8"), ("bench", "generate", "--repeats", "1")):
        result = slm(*verb, *words, "--compile", "true")
        refuse(result, "there is no no-such-compiler", "do not compile: --compile false")
    monkeypatch.setenv("SLM_CACHE_DIR", str(workplace / "units"))
    result = slm("predict", *words)
    assert result.status == 0
    assert "ompil" not in result.err


def test_it_is_compiled_in_the_background_and_said(slm, trained, workplace, monkeypatch):
    monkeypatch.setattr(hardware, "COMPILER", "/bin/true")
    monkeypatch.setenv("SLM_CACHE_DIR", str(workplace / "units"))
    requests, process = [], MagicMock(poll=lambda: None)

    def start(args, **how):
        requests.append(args)
        return process

    monkeypatch.setattr(compiled.subprocess, "Popen", start)
    words = ("--ckpt_path", checkpoint("best", root=trained), "--trainer.accelerator", "cpu")
    result = slm("predict", *words)
    assert result.status == 0
    assert result.err.count("compiling in the background") == 1
    uncompiled = slm("predict", *words, "--compile", "false", "--weights", "int8")
    assert uncompiled.out == result.out
    (request,) = requests
    assert [rows for rows, _ in json.loads(request[-1])["units"]] == [1]
    slm("predict", *words, "--num_samples", "30")
    assert [rows for rows, _ in json.loads(requests[-1][-1])["units"]] == [16, 1, 4]


def test_a_runs_own_config_is_no_harm(slm, trained, monkeypatch):
    """It says `default_root_dir: null`, among much else."""
    monkeypatch.chdir(trained)
    result = slm("predict", "--config", "lightning_logs/version_0/config.yaml")
    assert result.status == 0, result.err


def test_prompts_are_lines_and_nothing_else_ends_one(slm, trained, workplace):
    (workplace / "prompts.txt").write_bytes("Tom\u2028and Lily\r\nA\x85B\n".encode())
    run(slm, trained, "--prompt_file", "prompts.txt", "--out", "s.jsonl", "--prompt", "\udcff!")
    records = [json.loads(line) for line in Path("s.jsonl").read_bytes().splitlines()]
    assert [r["prompt"] for r in records] == ["?!", "Tom\u2028and Lily", "A\x85B"]
    assert not Path("s.jsonl.part.lock").exists()


def test_a_stop_text_and_a_config_reach_the_story(slm, trained, workplace):
    free = run(slm, trained)
    stop = free[len("Once upon a time") + 5 :][:3]
    cut = run(slm, trained, "--stop", stop)
    assert cut == free[: free.index(stop, len("Once upon a time"))] + "\n"
    options = {"stop": [stop], "prompt": ["Once upon a time"]}
    (workplace / "sampling.yaml").write_text(json.dumps(options))  # JSON is YAML
    assert run(slm, trained, "--config", "sampling.yaml") == cut
    assert run(slm, trained, "--config", "tiny.yaml") == free, "a config for training is no harm"
    (workplace / "free.yaml").write_text("top_k: null\ntop_p: null")
    assert run(slm, trained, "--config", "free.yaml") == run(slm, trained, "--top_k", "null")
    assert run(slm, trained, "--config", "free.yaml") != free
    (workplace / "wrong.yaml").write_text("temprature: 1.0")
    ckpt = checkpoint("best", root=trained)
    refuse(slm("predict", "--ckpt_path", ckpt, "--config", "wrong.yaml"), "no option --temprature")


def predict_many(trained, *words):
    """The command line of a process that writes many stories to a file."""
    ckpt = str(checkpoint("best", root=trained))
    command = [sys.executable, "-m", "slm.cli", "predict", "--ckpt_path", ckpt]
    command += ["--trainer.accelerator", "cpu", "--prompt_file", "prompts.txt"]
    return [*command, "--out", "stories.jsonl", *words]


def heed_interrupts():
    """For a child of tests that run in the background, where shells have Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not get {count} lines; {process.poll()}")


def test_a_killed_prompt_file_goes_on_where_it_was(slm, trained, workplace):
    """Killed, cut in the middle of a line, and interrupted: the same as generated at once."""
    (workplace / "prompts.txt").write_text("".join(f"A cat {n}\n" for n in range(300)))
    part, whole = workplace / "stories.jsonl.part", workplace / "stories.jsonl"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = predict_many(trained)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        wait_for_lines(part, 20, process)
        process.kill()
    killed = part.read_bytes()
    part.write_bytes(killed[:-7])
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=heed_interrupts
    ) as process:
        wait_for_lines(part, killed.count(b"\n") + 20, process)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130, err
    assert "Continuing after" in err
    assert "of 300 stories are in stories.jsonl.part; the same command continues" in err
    assert "Traceback" not in err
    assert not whole.exists()
    refuse(slm(*predict_many(trained, "--seed", "5")[3:]), "stories of another command")
    with FileLock(f"{part}.lock"):
        refuse(slm(*predict_many(trained)[3:]), "another process is writing")
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "300 stories written to stories.jsonl" in done.stderr
    assert not part.exists()
    records = [json.loads(line) for line in whole.read_bytes().splitlines()]
    assert [r["prompt"] for r in records] == [f"A cat {n}" for n in range(300)]
    whole.rename("interrupted.jsonl")
    run(slm, trained, "--prompt_file", "prompts.txt", "--out", "stories.jsonl")
    at_once = [json.loads(line) for line in whole.read_bytes().splitlines()]
    for ours, reference in zip(records, at_once, strict=True):
        assert {**ours, "seconds": 0} == {**reference, "seconds": 0}


def test_ctrl_c_keeps_what_was_generated(trained):
    """On a terminal: pieces come while the story is generated."""
    ckpt = str(checkpoint("best", root=trained))
    command = [sys.executable, "-m", "slm.cli", "predict", "--ckpt_path", ckpt]
    command += ["--min_new_tokens", "90000", "--max_new_tokens", "90000"]
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        command, stdout=inside, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        os.close(inside)
        text = b""
        while len(text) < 200:
            text += os.read(terminal, 100)
        assert process.poll() is None, "it goes on while we have read the beginning"
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while piece := os.read(terminal, 4096):
                text += piece
        err = process.stderr.read()
    assert process.returncode == 130
    assert text.startswith(b"Once upon a time")
    assert text.endswith(b"\n")
    assert err == "Interrupted.\n"


def test_predict_does_not_look_at_the_data(slm, trained):
    """Not even where they lie, whole or not."""
    manifest = trained / "data" / "stories-bpe300" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_text('{"format_version": 1}')
    try:
        result = slm("predict", "--ckpt_path", checkpoint("best", root=trained))
        assert result.status == 0, result.err
        assert slm("validate", "--ckpt_path", checkpoint("best", root=trained)).status == 2
    finally:
        manifest.write_bytes(whole)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--temperature", "-1"), "temperature is -1"),
        (("--top_k", "0"), "top_k is 0"),
        (("--num_samples", "0"), "num_samples is 0"),
        (("--top_p", "2"), "top_p is 2"),
        (("--temperature", "0", "--num_samples", "2"), "it must be 1 with temperature 0"),
        (("--stop", ""), "stop is ('',)"),
        (("--batch_size", "0"), "--batch_size 0"),
        (("--weights", "int3"), "int3"),
        (("--trainer.accelerator", "mps"), "accelerator is mps, and torch finds no such device"),
        (("--trainer.precision", "bf16-mixed"), "there is no option --trainer.precision"),
        (("--prompt", "a long one " * 9, "--past_context", "stop"), "a prompt of 74 tokens"),
        (("--prompt_file", "none.txt"), "none.txt cannot be read"),
        (("--out", "stories.txt"), "stories.txt exists already"),
        (("--out", "nowhere/s.jsonl"), "there is no folder nowhere"),
        (("Tom",), "--prompt Tom"),
    ],
)
def test_mistakes_in_options_are_explained(slm, trained, workplace, words, expected):
    before = (workplace / "stories.txt").read_bytes()
    ckpt = checkpoint("best", root=trained)
    refuse(slm("predict", "--ckpt_path", ckpt, "--trainer.accelerator", "cpu", *words), expected)
    assert (workplace / "stories.txt").read_bytes() == before


def test_a_reader_that_goes_away_is_no_error(trained):
    command = [sys.executable, "-m", "slm.cli", "predict", "--num_samples", "20"]
    command += ["--ckpt_path", checkpoint("best", root=trained)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 0, err
    assert "Traceback" not in err
