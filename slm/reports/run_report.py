"""A run's report: one HTML file without external files."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from slm.data.source import describe_source
from slm.data.tokenizer import Tokenizer
from slm.files import replacing
from slm.generation.storyteller import example_story
from slm.model import GPT
from slm.reports.figures.attention import draw_head, draw_heads, maps_of_text, token_label
from slm.reports.figures.curves import CURVES, RunCurves, read_run
from slm.reports.figures.next_tokens import draw_next_tokens, expectations
from slm.reports.figures.weights import draw_weights
from slm.reports.page import definitions, drawn, folded, number, page, section, tiles
from slm.reports.pictures import STORY
from slm.reports.scorecard_html import read_card, scorecard_section
from slm.training.callbacks.time_budget import format_duration
from slm.training.checkpoint import Checkpoint, open_checkpoint
from slm.training.runs import Run

CAPTIONS = {
    "loss": "Training and validation loss, on linear and on logarithmic axes. A healthy "
    "run falls fast, then slowly; validation stays close to training. Where it turns upwards while "
    "training continues to fall, the model learns by heart.",
    "bits-per-byte": "The validation loss per byte of text, which compares across vocabularies.",
    "learning-rate": "Warm-up, then down to the floor: it should end where the run does.",
    "gradient-norm": "Before clipping. Single peaks are clipped; a steady climb warns of a loss "
    "about to burst.",
    "throughput": "Between log points, without validations. Dips: something else on the machine.",
    "weights": "Bells are healthy; a spike at zero is a part that "
    "does not take part, a flat box one that was driven to its limit.",
    "attention-heads": "Each small square is a head, rows look at columns. Diagonals look at the "
    "token before, columns at one token from everywhere; the first column is where a head rests.",
    "attention": "One head of the last layer, with its tokens. A middle dot is a space.",
    "next-tokens": "How probable each token of a story was to the model, and what it thought "
    "likeliest.",
}
"""What each figure shows, and what to look for."""


def write_report(run: Path, out: Path | None = None, curves: RunCurves | None = None) -> Path:
    """Writes a run's report, by default `report.html` in its folder; returns the path."""
    path = out or run / "report.html"
    page = _page(_Run.open(run, curves))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


@dataclass(frozen=True)
class _Run:
    """All that is known of a run."""

    curves: RunCurves
    checkpoint: Checkpoint | None
    record: list[dict[str, Any]]
    scorecard: dict[str, Any] | None
    config: str

    @classmethod
    def open(cls, folder: Path, curves: RunCurves | None) -> "_Run":
        found = Run(folder).best_checkpoint
        configs = Run(folder).configs()
        file = folder / "scorecard.json"
        card = read_card(file) if file.exists() else None
        return cls(
            curves or read_run(folder),
            open_checkpoint(found) if found else None,
            Run(folder).record(),
            card,
            configs[-1].read_text(encoding="utf-8", errors="replace") if configs else "",
        )


def _page(run: _Run) -> str:
    parts = [_head(run), _facts(run), _curves(run.curves)]
    stories = run.curves.stories
    scorecard = scorecard_section(run.scorecard, run.checkpoint, run.curves.folder)
    if run.checkpoint is None:
        parts += [_stories(stories), scorecard]
    else:
        model, tokenizer = run.checkpoint.make_model(), run.checkpoint.make_tokenizer()
        stories = stories or [(run.checkpoint.step, example_story(model, tokenizer))]
        parts += [_stories(stories), scorecard, _looking(model, tokenizer, run.checkpoint.label)]
    if run.config:
        parts.append(section("Config", folded("every option", run.config, tag="pre")))
    return page(f"Report of {run.curves.name}", parts)


def _head(run: _Run) -> str:
    curves = run.curves
    seconds = sum(entry["seconds"] for entry in run.record)
    tokens = curves.scalars["tokens_seen"][1][-1] if "tokens_seen" in curves.scalars else None
    figures = [
        (number(curves.best(), ".3f"), "validation loss, nats per token"),
        (number(curves.best("val_bits_per_byte"), ".3f"), "bits per byte"),
        (number(curves.best("val_perplexity"), ".2f"), "perplexity"),
        (f"{tokens / 1e6:,.2f} M" if tokens else "–", "tokens seen"),
        (format_duration(seconds) if seconds else "–", "training, with validations"),
        (number(_median(curves, "tokens_per_second"), ",.0f"), "tokens per second, median"),
    ]
    return f"<h1>{escape(curves.name)}</h1>\n{tiles(figures)}"


def _median(curves: RunCurves, name: str) -> float | None:
    if name not in curves.scalars:
        return None
    values = sorted(curves.scalars[name][1])
    return float(values[len(values) // 2])


# ---- what was trained on what -----------------------------------------------------------------


def _facts(run: _Run) -> str:
    rows: list[tuple[str, str]] = []
    if run.checkpoint is not None:
        rows += _model_facts(run.checkpoint)
    for part, entry in enumerate(run.record, 1):
        text = (
            f"{entry['started']}, steps {entry['first_step']:,} to {entry['last_step']:,}, "
            f"{entry['tokens']:,} tokens in {format_duration(entry['seconds'])}, "
            f"{entry['precision']}"
            f"{', compiled' if entry['compiled'] else ''}, on {entry['device']}: {entry['machine']}"
        )
        rows.append(("Trained" if len(run.record) == 1 else f"Trained, part {part}", text))
    if run.record:
        rows.append(("Energy", energy(run.record)))
    return section("What was trained on what", definitions(rows))


def _model_facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    gpt = checkpoint.model_options["gpt"]
    entry, tokenizer = checkpoint.entry, checkpoint.entry["tokenizer"]
    rows = [
        ("Model", str(GPT(checkpoint.gpt).parameter_counts())),
        ("Shape", ", ".join(f"{name} {value}" for name, value in gpt.items())),
        ("Vocabulary", f"{tokenizer['name']}, {tokenizer['n_vocab']:,} tokens"),
    ]
    if data := entry["data"]:
        splits = ", ".join(
            f"{name} {facts['stories']:,} stories, {facts['tokens']:,} tokens"
            for name, facts in data["splits"].items()
        )
        rows.append(("Data", f"{describe_source(data['source'])}: {splits}"))
    training = ", ".join(f"{name} {value}" for name, value in entry["training"].items())
    return [
        *rows,
        ("Training", training),
        ("Checkpoint", f"{checkpoint.path.name}, step {checkpoint.step:,}"),
    ]


def energy(record: Sequence[dict[str, Any]]) -> str:
    """The energy used by a run, as a text; from the entries of its record."""
    totals: dict[str, float] = {}
    for entry in record:
        for name, joules in entry["joules"].items():
            totals[name] = totals.get(name, 0.0) + joules
    if not totals:
        return "not readable on this machine"
    return ", ".join(f"{name} {joules / 3.6e6:.4f} kWh" for name, joules in totals.items())


# ---- figures ----------------------------------------------------------------------------------


def _curves(curves: RunCurves) -> str:
    shown = [_shown(name, figure) for name, draw in CURVES.items() if (figure := draw([curves]))]
    return section("Curves", "\n".join(shown))


def _shown(name: str, figure: Figure, kind: str = "svg") -> str:
    return drawn(name, figure, CAPTIONS[name], kind)


def _looking(model: GPT, tokenizer: Tokenizer, about: str) -> str:
    tokens, maps_LHTT = maps_of_text(model, tokenizer, STORY)
    labels = [token_label(tokenizer, token) for token in tokens]
    layer = model.config.n_layer
    found = expectations(model, tokenizer, STORY)
    one_head = draw_head(maps_LHTT[layer - 1, 0], labels, f"Layer {layer}, head 1 ({about})")
    figures = [
        _shown("attention-heads", draw_heads(maps_LHTT, f"All heads ({about})"), "png"),
        _shown("attention", one_head, "png"),
        _shown("weights", draw_weights(model, about)),
    ]
    if found:
        figures.insert(0, _shown("next-tokens", draw_next_tokens(found, about)))
    return section("Inside the model", "\n".join(figures))


# ---- stories ----------------------------------------------------------------------------------


def _stories(stories: Sequence[tuple[int, str]]) -> str:
    """The same prompt's story at each step, the first and the last unfolded."""
    shown = [
        folded(f"step {step:,}", text, index in (0, len(stories) - 1))
        for index, (step, text) in enumerate(stories)
    ]
    return section("The same story as training went on", "\n".join(shown))
