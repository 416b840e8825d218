"""From training on requests to stories with words, and their measurement."""

import json
from pathlib import Path

import pytest
from conftest import checkpoint, make_stories, refuse, write_stories

from slm.evaluation import requested
from slm.evaluation.likelihood import Accuracy
from slm.evaluation.requested import measure_requests, share_of_words


@pytest.mark.parametrize(
    ("words", "text", "share"),
    [
        (["dragon"], "Two dragons came.", 1.0),
        (["running", "cake"], "He runs. The pancake was good.", 0.5),
        (["jumped", "happy"], "Jump, said the happiest.", 0.5),
        (["cake"], "", 0.0),
        (["Dragon"], "a DRAGON", 1.0),
    ],
)
def test_inflections_count_and_parts_of_words_do_not(words, text, share):
    assert share_of_words(words, text) == share


def test_a_model_is_measured_with_and_without_the_request(monkeypatch):
    asked = []

    def write(model, tokenizer, requests, seed):
        asked.append([list(request) for request in requests])
        return [" ".join(request[:1]) for request in requests]

    monkeypatch.setattr(requested, "_generate", write)
    stories = ["A dragon ate the cake.", "No.", "The brave cat slept.", "A bird sang a song."]
    found = measure_requests(None, None, stories, 1)
    assert asked[1] == [[]] * 3
    assert found.words == sum(map(len, asked[0]))
    shares = [1 / len(request) for request in asked[0]]
    assert found.requested == Accuracy(3, pytest.approx(sum(shares)))
    assert found.plain.passed == 0
    assert measure_requests(None, None, ["No."], 1) is None


def test_requests_from_training_to_stories(slm, workplace):
    """Prepared, trained, resumed, asked for words, evaluated, and fine-tuned from a plain model."""
    write_stories(workplace / "stories.txt", make_stories(200))
    asks = ("--data.request", "words")
    assert slm("fit", "--config", "tiny.yaml", *asks).status == 0
    assert Path("data/stories-bpe300-words").is_dir()
    resumed = slm("fit", "--ckpt_path", "last", "--trainer.max_steps", "14", *asks)
    assert resumed.status == 0, resumed.err
    ckpt = checkpoint("best")
    words = ("predict", "--ckpt_path", ckpt, "--trainer.accelerator", "cpu", "--prompt", "A cat")
    plain = slm(*words)
    with_words = slm(*words, "--words", "Ball, kite", "--out", "s.jsonl")
    assert with_words.status == 0, with_words.err
    (record,) = map(json.loads, Path("s.jsonl").read_text().splitlines())
    assert record["words"] == ["Ball", "kite"]
    assert record["story"] != plain.out.rstrip("\n")
    found = slm("evaluate", "--ckpt_path", ckpt, "--pairs", "10", "--json", "card.json")
    assert found.status == 0, found.err
    assert "requested words that occur" in found.out
    card = json.loads(Path("card.json").read_text())["requests"]
    assert 0 <= card["plain"]["share"] <= card["plain"]["interval_95"][1] <= 1
    assert slm("report").status == 0
    report = Path("lightning_logs/version_0/report.html").read_text()
    assert "requested words that occur" in report
    # The validation split is the same with and without requests, and so is a plain model's loss.
    assert slm("fit", "--config", "tiny.yaml").status == 0
    manifests = [json.loads(Path(f"data/stories-bpe300{end}/manifest.json").read_text())
                 for end in ("", "-words")]  # fmt: skip
    splits = [manifest["splits"]["validation"]["sha256"] for manifest in manifests]
    assert splits[0] == splits[1]
    tuned = slm("fit", "--config", "tiny.yaml", *asks, "--model.init_from",
                checkpoint("best", 1), "--data.tokenizer", checkpoint("best", 1))  # fmt: skip
    assert tuned.status == 0, tuned.err
    assert slm("predict", "--words", "ball", "--prompt", "A").status == 0
    # A batch of one short window may lie within a request.
    short = ("--model.gpt.block_size", "4", "--data.batch_size", "1", "--trainer.max_steps", "60")
    tiny = slm("fit", "--config", "tiny.yaml", *asks, *short)
    assert tiny.status == 0, tiny.err
    too_long = ("--past_context", "stop", "--prompt", "z" * 14, "--ckpt_path", ckpt)
    assert slm("predict", *too_long).status == 0
    refuse(slm("predict", *too_long, "--words", "ball, kite, boat, hat"), "--past_context stop")
    info = slm("info", "data/stories-bpe300-words", "--verify")
    assert "request words" in info.out
    assert "[requested: " in info.out
