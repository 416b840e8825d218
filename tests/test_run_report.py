"""The report of a run, its record, and the pictures in TensorBoard."""

import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import TINY, checkpoint, make_stories, refuse, write_stories
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slm.cli import main
from slm.commands.fit import trainer as command
from slm.training.callbacks.record import RunRecord
from slm.training.callbacks.validation import LastStep
from slm.training.energy import EnergyMeter
from slm.training.runs import Run


class Page(HTMLParser):
    """What a page holds and points to."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.headings, self.alts = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.sources.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def first_report(tmp_path_factory):
    """A folder in which `fit` has trained and, as by default, reported; and what it printed."""
    folder = tmp_path_factory.mktemp("reported")
    (folder / "tiny.yaml").write_text(TINY)
    write_stories(folder / "stories.txt", make_stories(200))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", "--report", "true"]) == 0
    return folder, out.getvalue()


@pytest.fixture
def reported(first_report, workplace):
    """The folder of a run of one's own that ended with a report."""
    folder, out = first_report
    assert "Report     lightning_logs/version_0/report.html" in out
    shutil.copytree(folder, workplace, dirs_exist_ok=True)
    return workplace / "lightning_logs" / "version_0"


def test_fit_reports_unless_told_otherwise(slm):
    help_ = slm("fit", "--help").out
    assert re.search(r"--report \{true,false\}.*?default: True", help_, re.DOTALL)


def test_the_report_is_whole_and_needs_nothing_else(reported):
    text = (reported / "report.html").read_text()
    page = Page(text)
    assert {"What was trained on what", "Curves", "Scorecard", "Inside the model", "Config"} <= set(
        page.headings
    )
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"<(script|link|iframe)|url\(|@import", text)
    shown = {"loss", "learning-rate", "gradient-norm", "throughput", "weights", "attention"}
    assert shown | {"attention-heads", "next-tokens"} <= set(page.alts)
    assert "viewport" in text
    assert "Not measured yet" in text
    assert "stories.txt" in text
    assert "step 10</summary>" in text  # the story at each validation
    assert "step 12</summary>" in text


def test_the_report_shows_the_scorecard_and_escapes_what_it_shows(slm, reported):
    best = checkpoint("best")
    plan = ("evaluate", "--ckpt_path", best, "--stories", "10", "--loss_tokens", "100")
    assert slm(*plan).status == 0
    card = json.loads((reported / "scorecard.json").read_text())
    card["stories"][0] |= {"memorised": True, "text": "<b>Tom & Lily</b>"}
    (reported / "scorecard.json").write_text(json.dumps(card))
    assert slm("report", "--out", "r.html").status == 0
    text = Path("r.html").read_text()
    Page(text)
    assert "Not measured yet" not in text
    assert "the common notebook" in text
    assert "&lt;b&gt;Tom &amp; Lily&lt;/b&gt;" in text
    assert "<b>Tom" not in text
    refuse(slm("report", "--out", "no/r.html"), "mkdir -p no")
    refuse(slm("report", "--out", "."), "is a folder")


def test_the_record_of_a_run(slm, reported):
    (entry,) = Run(reported).record()
    assert (entry["first_step"], entry["last_step"]) == (0, 12)
    assert entry["tokens"] == 12 * 4 * 16
    assert entry["seconds"] > 0
    assert "torch" in entry["machine"]
    plan = ("fit", "--ckpt_path", "last", "--trainer.max_steps", "14")
    assert slm(*plan).status == 0
    parts = Run(reported).record()
    assert [(part["first_step"], part["last_step"]) for part in parts] == [(0, 12), (12, 14)]
    assert parts[1]["tokens"] == 2 * 4 * 16
    strange = [{"started": "half"}, parts[1], 7, parts[0] | {"joules": []}]
    strange += [parts[0] | {"seconds": None}]
    (reported / "record.json").write_text(json.dumps(strange))
    assert Run(reported).record() == parts[1:], "what cannot be read is not shown"
    assert slm(*plan[:-1], "16", "--report", "true").status == 0
    kept = json.loads((reported / "record.json").read_text())
    assert kept[:-1] == strange, "but kept"


def test_a_run_that_is_cut_off_has_a_record(slm, workplace, monkeypatch):
    """As by a power cut: nothing is called at the end."""
    monkeypatch.setattr(RunRecord, "on_train_end", lambda *_: None)
    assert slm("fit", "--config", "tiny.yaml").status == 0
    (entry,) = Run(workplace / "lightning_logs" / "version_0").record()
    assert entry["last_step"] == 12


def test_a_record_that_cannot_be_written_costs_no_checkpoint(slm, workplace, monkeypatch):
    def fail(self, *words, **options):
        if self.name.startswith("record.json.tmp"):
            raise OSError("stale")
        return write(self, *words, **options)

    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", fail)
    result = slm("fit", "--config", "tiny.yaml")
    assert result.status == 0, result.err
    assert "Record     not written: stale" in result.err
    assert checkpoint("last").exists()


def test_the_report_of_a_damaged_run(slm, reported):
    (reported / "config.yaml").write_bytes(b"caf\xe9: 1\n")
    (reported / "record.json").write_text('{"not": "a list"}')
    (reported / "scorecard.json").write_text('{"format_version": 1, "pairs": 3}')
    result = slm("report")
    assert result.status == 0, result.err
    text = (reported / "report.html").read_text()
    Page(text)
    assert "scorecard.json is damaged" in text
    (reported / "scorecard.json").write_text('{"half": ')
    assert slm("report").status == 0
    assert "scorecard.json is damaged" in (reported / "report.html").read_text()
    assert 'alt="loss"' in text


def test_the_scorecard_of_other_weights_is_called_that(slm, reported):
    plan = ("evaluate", "--ckpt_path", checkpoint("best"), "--stories", "10")
    assert slm(*plan, "--loss_tokens", "100").status == 0
    card = json.loads((reported / "scorecard.json").read_text())
    assert slm("report").status == 0
    assert "Of other weights" not in (reported / "report.html").read_text()
    card["about"] |= {"fingerprint": "0" * 12, "step": 3}
    (reported / "scorecard.json").write_text(json.dumps(card))
    assert slm("report").status == 0
    assert "those of step 3, not of best.ckpt" in (reported / "report.html").read_text()


def test_without_the_training_text_stories_are_described_all_the_same(slm, workplace):
    assert slm("fit", "--config", "tiny.yaml").status == 0
    write_stories(workplace / "other.txt", make_stories(100, seed=9))
    (workplace / "stories.txt").unlink()
    shutil.rmtree(workplace / "data")
    plan = ("evaluate", "--ckpt_path", checkpoint("best"), "--stories", "10")
    result = slm(*plan, "--data.source", "other.txt", "--json", "card.json")
    assert result.status == 0, result.err
    assert "No training text to compare with" in result.err
    card = json.loads((workplace / "card.json").read_text())
    assert card["generated"]["words"] > 0
    assert card["held_out_stories"]["words"] > 0
    assert card["generated"]["memorised"] is None
    assert all(story["memorised"] is None for story in card["stories"])


def test_tensorboard_gets_pictures_and_histograms(reported):
    events = EventAccumulator(str(reported), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"attention", "next tokens"}
    assert [image.step for image in events.Images("attention")] == [10, 12]
    assert "layer 1/attention, in" in tags["histograms"]
    assert "embeddings and output/token embedding" in tags["histograms"]


def test_without_any_watcher_the_weights_are_the_same(slm, workplace, monkeypatch):
    plan = ("fit", "--config", "tiny.yaml", "--model.gpt.dropout", "0.2")
    assert slm(*plan).status == 0
    # The last step's validation is not watching: it decides what is kept.
    monkeypatch.setattr(command, "standard_callbacks", lambda curves, progress: [LastStep()])
    monkeypatch.setattr(command, "Pictures", LastStep)
    monkeypatch.setattr(command, "RunRecord", LastStep)
    assert slm(*plan).status == 0
    watched, alone = (
        torch.load(checkpoint("last", n), weights_only=True)["state_dict"] for n in (0, 1)
    )
    assert not (workplace / "lightning_logs" / "version_1" / "record.json").exists()
    assert watched.keys() == alone.keys()
    for name, weight in watched.items():
        assert torch.equal(weight, alone[name]), name


# ---- energy -------------------------------------------------------------------------------------


def test_energy_is_added_up_over_an_overflow(tmp_path):
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("10000000")

    def count(microjoules):
        (folder / "energy_uj").write_text(f"{microjoules}\n")

    count(4_000_000)
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    count(9_000_000)
    meter.read()
    count(1_000_000)  # over the top: 1 to the range's end, 1 behind it
    meter.read()
    assert meter.joules == {"processor": pytest.approx(7.0)}


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path):
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    meter.read()
    assert meter.joules == {}


def test_a_gpus_power_is_summed_over_time(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.power_draw", lambda device: 300_000)
    times = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    meter = EnergyMeter(torch.device("cuda"), tmp_path)
    meter.read()
    assert meter.joules == {"GPU": pytest.approx(600.0)}
