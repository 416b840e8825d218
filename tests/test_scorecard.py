"""Minimal pairs, likelihood, copies, the judge, and `slm evaluate`."""

import json
import random
import re
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from conftest import TINY, checkpoint, refuse
from hypothesis import given
from hypothesis import strategies as st

from slm.cli import main
from slm.data.builtin import stories as builtin_stories
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.evaluation.generated import GeneratedStory, compare, describe, frequent_words, is_copy
from slm.evaluation.judge import GRADES, Judge, grade_stories
from slm.evaluation.likelihood import Accuracy, mean_log_probabilities, score_pairs
from slm.evaluation.overlap import Overlap, overlaps
from slm.evaluation.pairs import FAMILIES, Pair, Passage, make_pairs, sentences
from slm.evaluation.prompts import PROMPTS
from slm.model import GPT, GPTConfig
from slm.reports.figures.curves import read_run

STORY = (
    'Lily was sad. "Where is my cat?" she asked. They were in the garden. She went to see. Lily '
    "looked everywhere! Then Lily found it. She was happy. The end"
)


# ---- pairs --------------------------------------------------------------------------------------


@given(st.text(alphabet="ab .!?\"\n'", max_size=80))
def test_sentences_joined_are_the_story(story):
    assert "".join(sentences(story)) == story.rstrip()


def test_sentences_end_where_they_end():
    found = [part.strip() for part in sentences(STORY)]
    assert found[:3] == ["Lily was sad.", '"Where is my cat?"', "she asked."]
    assert found[-1] == "The end"


@pytest.fixture(scope="module")
def pairs():
    return make_pairs([str(story) for story in builtin_stories(12000)], 1, 300)


def test_every_family_gives_pairs_that_differ(pairs):
    assert list(pairs) == list(FAMILIES)
    for family, found in pairs.items():
        assert len(found) >= 20, family
        for pair in found:
            assert pair.right != pair.wrong
            assert pair.right.judged.strip()
            assert pair.wrong.judged.strip()


def test_what_is_right_stands_in_the_story():
    stories = [str(story) for story in builtin_stories(300)]
    text = " ".join(" ".join(story.split()) for story in stories)
    for family, found in make_pairs(stories, 1, 100).items():
        for pair in found:
            assert " ".join((pair.right.context + pair.right.judged).split()) in text, family


@pytest.mark.parametrize("family", ["agreement", "pronoun"])
def test_swaps_go_both_ways_equally_often(pairs, family):
    """So that preferring one word to the other wins as much as it loses."""
    swaps = Counter()
    for pair in pairs[family]:
        right, wrong = (
            side.judged.split()[0].strip(".,!?\"'") for side in (pair.right, pair.wrong)
        )
        swaps[right, wrong] += 1
    assert swaps
    for (right, wrong), count in swaps.items():
        assert swaps[wrong, right] == count, (right, wrong)


def test_names_are_exchanged(pairs):
    """So that preferring a frequent name wins as much as it loses."""
    swaps = Counter()
    for pair in pairs["name"]:
        right, wrong = (re.findall(r"\w+", side.judged) for side in (pair.right, pair.wrong))
        swaps.update({(a, b) for a, b in zip(right, wrong, strict=True) if a != b})
    assert len({name for swap in swaps for name in swap}) >= 4
    for (right, wrong), count in swaps.items():
        assert swaps[wrong, right] == count, (right, wrong)


def test_pairs_follow_from_stories_and_seed():
    stories = [str(story) for story in builtin_stories(100)]
    assert make_pairs(stories, 1, 50) == make_pairs(stories, 1, 50)
    assert make_pairs(stories, 1, 50)["order"] != make_pairs(stories, 2, 50)["order"]


def test_only_what_differs_differs():
    found = make_pairs([STORY, STORY.replace("Lily", "Mia").replace("cat", "dog")], 1, 9)
    assert found["name"]
    assert found["order"]
    for pair in found["name"]:
        assert re.sub("Lily|Mia", "X", pair.right.judged) == re.sub(
            "Lily|Mia", "X", pair.wrong.judged
        )
    for pair in found["order"]:
        assert sorted(pair.right.judged.split()) == sorted(pair.wrong.judged.split())


# ---- likelihood ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([str(story) for story in builtin_stories(200)], 300)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = GPTConfig(
        block_size=96, vocab_size=300, n_layer=1, n_head=2, n_embd=16, dropout=0.0
    )  # fmt: skip
    return GPT(shape).eval()


def test_mean_log_probability_is_that_of_the_judged_tokens(model):
    dice = random.Random(0)
    sides = [
        ([dice.randrange(300) for _ in range(length)], judged)
        for length, judged in ((9, 3), (97, 1), (30, 29), (9, 8))
    ]
    for (ids, judged), found in zip(sides, mean_log_probabilities(model, sides), strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        each = [float(log_probs[place - 1, ids[place]]) for place in range(1, len(ids))]
        assert found == pytest.approx(sum(each[-judged:]) / judged, rel=1e-5)


def test_a_pair_too_long_loses_the_same_beginning_on_both_sides(model, tokenizer, monkeypatch):
    seen = []

    def note(model, sides):
        seen.extend(sides)
        return [0.0, -1.0]

    monkeypatch.setattr("slm.evaluation.likelihood.mean_log_probabilities", note)
    pair = Pair(Passage(STORY * 3, " She was happy."), Passage(STORY * 3, " She was."))
    assert score_pairs(model, tokenizer, [pair]) == Accuracy(1, 1.0)
    (right, judged_right), (wrong, judged_wrong) = seen
    assert len(right) == model.config.block_size + 1
    assert right[:-judged_right] == wrong[:-judged_wrong]


def test_a_tie_is_half_and_what_cannot_fit_is_left_out(model, tokenizer):
    same = Passage("Lily", " was sad.")
    assert score_pairs(model, tokenizer, [Pair(same, same)]) == Accuracy(1, 0.5)
    endless = Passage("", STORY * 20)
    assert score_pairs(model, tokenizer, [Pair(endless, same)]) == Accuracy(0, 0, 1)


def test_the_interval_is_wilsons():
    low, high = Accuracy(10, 9).interval()
    assert (low, high) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # as published tables have it
    assert Accuracy(50, 50).interval()[1] == 1.0


def test_an_untrained_model_stands_at_chance(model, tokenizer, pairs):
    for family, found in pairs.items():
        assert found, family
        # Wider than 95 %: a fresh network is no coin but has tastes of its own.
        low, high = score_pairs(model, tokenizer, found).interval(z=3.3)
        assert low <= 0.5 <= high, family
        assert high - low < 0.35, "enough pairs"


# ---- copies -------------------------------------------------------------------------------------


def plain_overlap(story, training):
    """The same by looking everywhere."""
    longest, start = 0, 0
    windows = {}
    for length in range(5, len(story) + 1):
        windows[length] = {tuple(training[i : i + length]) for i in range(len(training))}
        for place in range(len(story) - length + 1):
            if tuple(story[place : place + length]) in windows[length] and length > longest:
                longest, start = length, place
    fives = [tuple(story[i : i + 5]) for i in range(len(story) - 4)]
    novel = sum(five not in windows[5] for five in fives) / len(fives) if fives else 1.0
    return Overlap(longest, start, len(story), novel)


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), min_size=8, max_size=60),
)
def test_overlap_is_what_looking_everywhere_finds(story, training):
    found = overlaps([story, [9] * 6], [np.array(training)])
    expected = plain_overlap(story, training)
    assert found[0] == replace(expected, novel=pytest.approx(expected.novel))
    assert found[1] == Overlap(0, 0, 6, 1.0)


def test_overlap_over_several_blocks():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 50, 5000)
    story = [*range(100, 110), *training[2480:2530].tolist(), 100]
    blocks = [training[start : start + 1000 + 64] for start in range(0, 5000, 1000)]
    (found,) = overlaps([story], blocks)
    assert (found.longest, found.start) == (50, 10)


def test_what_counts_as_a_copy():
    assert is_copy(Overlap(64, 0, 300, 0.5))
    assert is_copy(Overlap(30, 0, 60, 0.5))
    assert not is_copy(Overlap(30, 0, 300, 0.5))
    assert not is_copy(Overlap(20, 0, 20, 0.0))  # a short formula


def test_manner_of_stories():
    none = Overlap(0, 0, 8, 1.0)
    stories = [
        GeneratedStory("Tom ran.", "Tom saw a dog. Tom saw a dog.", True, "Tom"),
        GeneratedStory("Lily ran.", "She saw a zorb.", False, "Lily"),
    ]
    found = describe(stories)
    assert found.memorised is None
    assert found.ended == 0.5
    assert found.words == 6.0
    assert found.repetition == pytest.approx((1 / 5 + 0) / 2)
    assert found.names_kept == 0.5
    assert found.distinct_1 == pytest.approx(6 / 12)
    frequent = frequent_words(["tom saw a dog she saw a a"])
    compared = compare(found, stories, [none, replace(none, longest=64)], frequent)
    assert compared.unknown_words == pytest.approx(1 / 12)
    assert compared.memorised == 0.5
    assert compared.words == found.words


def test_the_prompts_are_many_and_name_their_character():
    assert len({prompt for _, prompt in PROMPTS}) >= 50
    assert all(re.search(rf"\b{name}\b", prompt) for name, prompt in PROMPTS)


# ---- the judge ----------------------------------------------------------------------------------


class Stub(BaseHTTPRequestHandler):
    """An OpenAI-compatible service that answers from a list."""

    answers: list  # of a status, and the text of the message
    asked: list

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        status, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def service(monkeypatch):
    """A local judge; what it is asked, and what it is to answer."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    handler = type("Answers", (Stub,), {"answers": [], "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


GOOD = 'Here you are:\n{"grammar": 8, "creativity": 6, "consistency": 7, "plot": 5} Enjoy!'
TOLD = GeneratedStory("Once", " there was a cat.", True)


def test_the_judge_is_asked_for_each_story(service):
    service.answers = [(200, GOOD), (200, GOOD.replace("8", "10"))]
    found = grade_stories(Judge(service.url, "wise", "secret"), [TOLD, TOLD])
    assert found["grades"] == {"grammar": 9, "creativity": 6, "consistency": 7, "plot": 5}
    assert (found["stories"], found["graded"]) == (2, 2)
    path, key, body = service.asked[0]
    assert path == "/v1/chat/completions"
    assert key == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("wise", 0)
    assert "there was a cat." in body["messages"][1]["content"]


def test_answers_that_are_no_grades_do_not_count(service):
    service.answers = [(200, "I like it"), (200, '{"grammar": 99}'), (200, GOOD)]
    found = grade_stories(Judge(service.url, "wise"), [TOLD] * 3)
    assert (found["stories"], found["graded"], found["stopped"]) == (3, 1, None)
    assert found["grades"]["plot"] == 5
    assert found["each"][:2] == [None, None]
    assert service.asked[0][1] is None, "no key"
    service.answers = [(200, "no")]
    with pytest.raises(UserError, match="four grades"):
        grade_stories(Judge(service.url, "wise"), [TOLD])


def test_a_judge_that_gives_up_takes_no_grades_back(service, monkeypatch):
    service.answers = [(200, GOOD), (403, "")]
    found = grade_stories(Judge(service.url, "wise"), [TOLD] * 3)
    assert (found["stories"], found["graded"]) == (3, 1)
    assert "403" in found["stopped"]
    grades = iter([dict.fromkeys(GRADES, 4.0), KeyboardInterrupt()])

    def grade(judge, story):
        if isinstance(answer := next(grades), BaseException):
            raise answer
        return answer

    monkeypatch.setattr(Judge, "grade", grade)
    found = grade_stories(Judge(service.url, "wise"), [TOLD] * 3)
    assert (found["graded"], found["stopped"], found["grades"]["plot"]) == (1, "interrupted", 4)


def test_a_judge_that_gives_up_before_any_grade_is_an_error(service):
    service.answers = [(200, "no grades"), (403, "")]
    with pytest.raises(UserError, match="403"):
        grade_stories(Judge(service.url, "wise"), [TOLD] * 3)


def test_a_busy_judge_is_asked_again_a_refusal_is_said(service):
    service.answers = [(429, ""), (503, ""), (200, GOOD)]
    assert Judge(service.url, "wise").grade(TOLD)["grammar"] == 8
    service.answers = [(401, "")]
    service.asked.clear()
    with pytest.raises(UserError, match="401"):
        Judge(service.url, "wise").grade(TOLD)
    assert len(service.asked) == 1


# ---- the verb -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on stories of many sentences, long enough to differ from formulas."""
    folder = tmp_path_factory.mktemp("storied")
    texts = [str(story) for story in builtin_stories(1000)]
    (folder / "long.txt").write_text("\n<|endoftext|>\n".join(texts))
    (folder / "tiny.yaml").write_text(TINY)
    plan = ["fit", "--config", folder / "tiny.yaml", "--data.source", folder / "long.txt"]
    plan += ["--data.root", folder / "data", "--trainer.default_root_dir", folder]
    assert main([*map(str, plan), "--model.gpt.block_size", "128", "--report", "false"]) == 0
    return folder


@pytest.fixture(scope="module")
def scored(trained):
    """The scorecard of a tiny run, by the real command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm.evaluation.generated.PROMPTS", PROMPTS[:8])
        return score(trained)


def score(trained):
    command = ["evaluate", "--ckpt_path", checkpoint("best", root=trained), "--stories", "30"]
    command += ["--loss_tokens", "null"]
    assert main([*map(str, command), "--json", str(trained / "card.json")]) == 0
    return json.loads((trained / "card.json").read_text())


FEW = ("--pairs", "10", "--loss_tokens", "100")


@pytest.fixture
def fed(workplace):
    """Options for a scorecard in no time: two stories of another generator."""
    generated = [{"prompt": "Tom", "story": f"Tom saw a {what}.", "ended": "stop"} for what in "ab"]
    (workplace / "fed.jsonl").write_text("\n".join(map(json.dumps, generated)))
    return ("--generations", "fed.jsonl", *FEW)


def test_the_card_holds_everything(scored, trained):
    assert {"ending", "order", "name", "repetition"} <= set(scored["pairs"]) <= set(FAMILIES)
    assert scored["generated"]["stories"] == 8 == len(scored["stories"])
    assert scored["held_out_stories"]["stories"] == 8
    assert scored["loss"]["bits_per_byte"] > 0
    assert scored["judge"] is None
    run = checkpoint("best", root=trained).parent.parent
    assert json.loads((run / "scorecard.json").read_text()) == scored
    scalars = read_run(run / "scorecard").scalars
    assert scalars["scorecard/stories/ended"][1][-1] == pytest.approx(scored["generated"]["ended"])
    assert scalars["scorecard/loss/loss"][0][-1] == 12


def test_its_loss_is_what_validate_measures(slm, trained, scored):
    best = checkpoint("best", root=trained)
    plan = ("validate", "--ckpt_path", best, "--trainer.precision", "32-true")
    assert slm(*plan, "--json", "v.json").status == 0
    with open("v.json") as file:
        assert scored["loss"]["loss"] == pytest.approx(json.load(file)["val_loss"], rel=1e-5)


def test_the_same_numbers_twice(slm, trained, scored, monkeypatch):
    monkeypatch.setattr("slm.evaluation.generated.PROMPTS", PROMPTS[:8])
    best = checkpoint("best", root=trained)
    plan = ("evaluate", "--ckpt_path", best, "--pairs", "30", "--loss_tokens", "null")
    assert slm(*plan, "--json", "b.json").status == 0
    with open("b.json") as file:
        assert json.load(file) == scored


def test_training_stories_fed_as_generations_are_flagged(slm, trained, workplace):
    """Long enough ones, of the very text that the model was trained on."""
    best = checkpoint("best", root=trained)
    known = [str(story) for story in builtin_stories(20)]
    rng = random.Random(5)
    other = ["".join(rng.choices("abcdefgh ", k=200)) for _ in range(20)]
    shares = {}
    for name, stories in (("known", known), ("other", other)):
        (workplace / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"prompt": "", "story": story}) for story in stories)
        )
        plan = ("evaluate", "--ckpt_path", best, "--generations", f"{name}.jsonl", *FEW)
        result = slm(*plan, "--json", f"{name}.json")
        assert result.status == 0, result.err
        card = json.loads((workplace / f"{name}.json").read_text())
        assert card["generated"]["stories"] == 20
        shares[name] = card["generated"]["memorised"]
        if name == "known":
            assert "are taken from the training text" in result.out
    assert shares["known"] >= 0.7  # some of them were held out
    assert shares["other"] == 0


@pytest.mark.parametrize(
    "other",
    [
        ("--untrained", "true"),
        ("--generations", "fed.jsonl"),
        ("--data.source", "stories.txt"),
    ],
    ids=lambda words: words[0],
)
def test_the_run_keeps_the_card_of_its_own(slm, trained, fed, other, monkeypatch):
    """Neither another model's, nor that of other stories or other data."""
    monkeypatch.setattr("slm.evaluation.generated.PROMPTS", PROMPTS[:2])
    best = checkpoint("best", root=trained)
    card = best.parent.parent / "scorecard.json"
    card.write_text("its own")
    result = slm("evaluate", "--ckpt_path", best, *FEW, *other, "--json", "u.json")
    assert result.status == 0, result.err
    with open("u.json") as file:
        found = json.load(file)
    assert (found["about"]["step"] == 0) == (other[0] == "--untrained")
    assert card.read_text() == "its own"
    assert "Scorecard  " not in result.out


def test_families_that_do_not_fit_are_said(slm, workplace):
    """A context of 16 tokens is too short for most of what is judged."""
    text = "\n<|endoftext|>\n".join(str(story) for story in builtin_stories(300))
    (workplace / "stories.txt").write_text(text)
    assert slm("fit", "--config", "tiny.yaml").status == 0
    result = slm("evaluate", *FEW, "--json", "card.json")
    assert result.status == 0, result.err
    with open("card.json") as file:
        card = json.load(file)
    order = card["pairs"]["order"]
    assert (order["pairs"], order["accuracy"], order["left_out"]) == (0, None, 10)
    assert "10 more do not fit into the context" in result.out
    measured = [found["accuracy"] for found in card["pairs"].values() if found["pairs"]]
    assert card["score"] == pytest.approx(sum(measured) / len(measured))
    assert f"mean of {len(measured)} of 6 families" in result.out
    assert slm("report").status == 0
    page = (workplace / "lightning_logs" / "version_0" / "report.html").read_text()
    assert f"Mean of {len(measured)} of 6 families" in page


def test_four_equal_sentences_have_no_other_order():
    story = "The duck said." + " Quack!" * 9
    assert make_pairs([story, story], 1, 10)["order"] == []


def test_the_judge_by_the_command_line(slm, trained, service, fed, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    service.answers = [(200, GOOD)]
    plan = ("evaluate", "--ckpt_path", checkpoint("best", root=trained), "--json", "j.json", *fed)
    result = slm(*plan, "--judge.url", service.url, "--judge.model", "wise")
    assert result.status == 0, result.err
    assert "grammar 8.0, creativity 6.0, consistency 7.0, plot 5.0 of 10, by wise" in result.out
    with open("j.json") as file:
        assert json.load(file)["judge"]["graded"] == 2
    assert len(service.asked) == 3, "once before anything is measured"
    assert set(GRADES) == {"grammar", "creativity", "consistency", "plot"}


@pytest.mark.parametrize("key", ["sk-a\nsk-secret", "sk-secret\u2019"])
def test_a_key_that_cannot_be_sent_is_not_shown(slm, trained, service, fed, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    plan = ("evaluate", "--ckpt_path", checkpoint("best", root=trained), *fed)
    result = slm(*plan, "--judge.url", service.url, "--judge.model", "wise")
    refuse(result, "OPENAI_API_KEY contains characters that cannot be sent")
    assert "secret" not in result.err
    assert not service.asked


def test_a_judge_that_is_not_there_costs_no_time(slm, trained, fed, monkeypatch):
    plan = ("evaluate", "--ckpt_path", checkpoint("best", root=trained), *fed)
    result = slm(*plan, "--judge.url", "http://127.0.0.1:9/v1", "--judge.model", "wise")
    refuse(result, "the judge at http://127.0.0.1:9/v1 does not answer")
    assert "Measuring  loss" not in result.err


def test_a_judge_that_goes_away_loses_nothing(slm, trained, service, monkeypatch):
    service.answers = [(200, GOOD), (403, "")]
    monkeypatch.setattr("slm.evaluation.generated.PROMPTS", PROMPTS[:2])
    best = checkpoint("best", root=trained)
    card = best.parent.parent / "scorecard.json"
    card.unlink(missing_ok=True)
    plan = ("evaluate", "--ckpt_path", best, "--json", "j.json", *FEW)
    result = slm(*plan, "--judge.url", service.url, "--judge.model", "wise")
    refuse(result, "does not answer: 403")
    assert "minimal pairs" in result.out
    assert "Scorecard  " in result.out
    with open("j.json") as file:
        assert json.load(file)["loss"]
    assert json.loads(card.read_text())["loss"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pairs", "3"], "10 or more"),
        (["--loss_tokens", "0"], "1 or more"),
        (["--judge.url", "http://x/v1"], "both"),
        (["--judge.url", "x", "--judge.model", "m"], "http://"),
        (["--generations", "absent.jsonl"], "absent.jsonl does not exist"),
        (["--generations", "tiny.yaml"], "tiny.yaml, line 1, cannot be understood"),
        (["--untrained"], "--untrained without a value"),
        (["--json", "no/where.json"], "mkdir -p no"),
        (["--json", "."], "is a folder"),
        (["--data.source", "absent.txt"], "absent.txt"),
        (["--pirs", "30"], "--pairs, perhaps?"),
    ],
)
def test_mistakes_are_explained(slm, trained, words, expected):
    refuse(slm("evaluate", "--ckpt_path", checkpoint("best", root=trained), *words), expected)


def test_a_run_stands_for_its_best_checkpoint(slm, trained, fed):
    best = checkpoint("best", root=trained)
    for named in (best.parent.parent, "version_0"):
        place = ("--trainer.default_root_dir", trained) if named == "version_0" else ()
        result = slm("evaluate", "--ckpt_path", named, *place, *fed)
        assert result.status == 0, result.err
        assert f"Checkpoint {best}" in result.err
