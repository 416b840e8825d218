"""A run's report: one HTML file that needs nothing else, no network either."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from slm.data.source import in_words
from slm.data.tokenizer import Tokenizer
from slm.model import GPT, SamplingOptions
from slm.reports.figures.attention import draw_head, draw_heads, maps_of_text, token_label
from slm.reports.figures.curves import CURVES, RunCurves, read_run
from slm.reports.figures.next_tokens import draw_next_tokens, expectations
from slm.reports.figures.style import as_bytes
from slm.reports.figures.weights import draw_weights
from slm.reports.pictures import STORY
from slm.reports.record import read_record
from slm.reports.scorecard.card import FORMAT_VERSION, MANNER_WORDS
from slm.reports.scorecard.pairs import FAMILIES
from slm.training.budget import in_words as duration
from slm.training.checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from slm.training.storyteller import StoryRequest, Storyteller

PROMPT = "Once upon a time"

CAPTIONS = {
    "loss": "Training and validation loss over the tokens seen, linear and logarithmic. A healthy "
    "run falls fast, then slowly; validation stays close to training. Where it turns upwards while "
    "training goes on falling, the model learns by heart.",
    "bits-per-byte": "The validation loss per byte of text, which compares across vocabularies.",
    "learning-rate": "Warm-up, then down to the floor: it should end where the run does.",
    "gradient-norm": "Before clipping. Single peaks are clipped; a steady climb warns of a loss "
    "about to burst.",
    "throughput": "Between log points, without validations. Dips: something else on the machine.",
    "weights": "Bells that widen from layer to layer are healthy; a spike at zero is a part that "
    "does not take part, a flat box one that was driven to its limit.",
    "attention-heads": "Each small square is a head, rows look at columns. Diagonals look at the "
    "token before, columns at one token from everywhere; the first column is where a head rests.",
    "attention": "One head of the last layer, with its tokens. A middle dot is a space.",
    "next-tokens": "How probable each token of a story was to the model, and what it thought "
    "likeliest.",
}
"""What each figure shows, and what to look for."""


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run.

    Args:
        run: The run's folder.
        out: The file; None takes `report.html` in that folder.

    Returns:
        The file's path.
    """
    path = out or run / "report.html"
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(_page(_Run.open(run)), encoding="utf-8")
    temporary.replace(path)
    return path


@dataclass(frozen=True)
class _Run:
    """Everything that is known of a run."""

    curves: RunCurves
    checkpoint: Checkpoint | None
    record: list[dict[str, Any]]
    scorecard: dict[str, Any] | None
    config: str

    @classmethod
    def open(cls, folder: Path) -> "_Run":
        found = checkpoint_of(folder)
        configs = sorted(folder.glob("config*.yaml"), key=lambda file: file.stat().st_mtime)
        try:
            card = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            card = None
        if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
            card = None
        return cls(
            read_run(folder),
            open_checkpoint(found) if found else None,
            read_record(folder),
            card,
            configs[-1].read_text(encoding="utf-8") if configs else "",
        )


def _page(run: _Run) -> str:
    parts = [_head(run), _facts(run), _curves(run.curves)]
    if run.checkpoint is not None:
        model, tokenizer = run.checkpoint.make_model(), run.checkpoint.make_tokenizer()
        parts += [
            _stories(run, Storyteller(model, tokenizer)),
            _scorecard(run),
            _looking(model, tokenizer),
        ]
    if run.config:
        parts.append(_section("Config", f"<pre>{escape(run.config)}</pre>"))
    title = f"Report of {run.curves.name}"
    return _TEMPLATE.replace("{title}", escape(title)).replace("{body}", "\n".join(parts))


def _head(run: _Run) -> str:
    curves = run.curves
    seconds = sum(entry["seconds"] for entry in run.record)
    tokens = curves.scalars["tokens_seen"][1][-1] if "tokens_seen" in curves.scalars else None
    tiles = [
        (_number(curves.best(), ".3f"), "validation loss, nats per token"),
        (_number(curves.best("val_bits_per_byte"), ".3f"), "bits per byte"),
        (_number(curves.best("val_perplexity"), ".2f"), "perplexity"),
        (f"{tokens / 1e6:,.2f} M" if tokens else "–", "tokens seen"),
        (duration(seconds) if seconds else "–", "training, with validations"),
        (_number(_median(curves, "tokens_per_second"), ",.0f"), "tokens per second, median"),
    ]
    shown = "".join(f"<div><b>{escape(v)}</b><span>{escape(w)}</span></div>" for v, w in tiles)
    return f'<h1>{escape(curves.name)}</h1>\n<div class="tiles">{shown}</div>'


def _median(curves: RunCurves, name: str) -> float | None:
    if name not in curves.scalars:
        return None
    values = sorted(curves.scalars[name][1])
    return float(values[len(values) // 2])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


# ---- what was trained on what -----------------------------------------------------------------


def _facts(run: _Run) -> str:
    rows: list[tuple[str, str]] = []
    if run.checkpoint is not None:
        rows += _model_facts(run.checkpoint)
    for number, entry in enumerate(run.record, 1):
        said = (
            f"{entry['started']}, steps {entry['first_step']:,} to {entry['last_step']:,}, "
            f"{entry['tokens']:,} tokens in {duration(entry['seconds'])}, {entry['precision']}"
            f"{', compiled' if entry['compiled'] else ''}, on {entry['device']}: {entry['machine']}"
        )
        rows.append(("Trained" if len(run.record) == 1 else f"Trained, part {number}", said))
    if run.record:
        rows.append(("Energy", _energy(run.record)))
    return _section("What was trained on what", _table(rows)) if rows else ""


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
        rows.append(("Data", f"{in_words(data['source'])}: {splits}"))
    training = ", ".join(f"{name} {value}" for name, value in entry["training"].items())
    return [
        *rows,
        ("Training", training),
        ("Checkpoint", f"{checkpoint.path.name}, step {checkpoint.step:,}"),
    ]


def _energy(record: Sequence[dict[str, Any]]) -> str:
    totals: dict[str, float] = {}
    for entry in record:
        for name, joules in entry["joules"].items():
            totals[name] = totals.get(name, 0.0) + joules
    if not totals:
        return "not readable on this machine"
    return ", ".join(f"{name} {joules / 3.6e6:.4f} kWh" for name, joules in totals.items())


# ---- figures ----------------------------------------------------------------------------------


def _curves(curves: RunCurves) -> str:
    shown = [
        _figure(name, figure, "svg") for name, draw in CURVES.items() if (figure := draw([curves]))
    ]
    return _section("Curves", "\n".join(shown)) if shown else ""


def _looking(model: GPT, tokenizer: Tokenizer) -> str:
    tokens, maps_LHTT = maps_of_text(model, tokenizer, STORY)
    labels = [token_label(tokenizer, token) for token in tokens]
    layer = model.config.n_layer
    found = expectations(model, tokenizer, STORY)
    figures = [
        _figure("next-tokens", draw_next_tokens(found), "svg") if found else "",
        _figure("attention-heads", draw_heads(maps_LHTT), "png"),
        _figure(
            "attention", draw_head(maps_LHTT[layer - 1, 0], labels, f"Layer {layer}, head 1"), "png"
        ),
        _figure("weights", draw_weights(model), "svg"),
    ]
    return _section("Inside the model", "\n".join(figures))


def _figure(name: str, figure: Figure, kind: str) -> str:
    encoded = base64.b64encode(as_bytes(figure, kind)).decode()
    form = "svg+xml" if kind == "svg" else kind
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/{form};base64,{encoded}">'
        f"<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>"
    )


# ---- stories ----------------------------------------------------------------------------------


def _stories(run: _Run, teller: Storyteller) -> str:
    """The same prompt's story at each validation; by the best checkpoint where none was logged."""
    stories = [(f"step {step:,}", text) for step, text in run.curves.stories]
    if not stories:
        assert run.checkpoint is not None
        text = "".join(teller.tell(StoryRequest(PROMPT, SamplingOptions())))
        stories = [(f"step {run.checkpoint.step:,}", PROMPT + text)]
    shown = [
        f"<details{' open' if place in (0, len(stories) - 1) else ''}><summary>{escape(when)}"
        f"</summary><p>{escape(text)}</p></details>"
        for place, (when, text) in enumerate(stories)
    ]
    return _section("The same story as training went on", "\n".join(shown))


def _scorecard(run: _Run) -> str:
    card = run.scorecard
    if not card:
        command = f"slm evaluate --ckpt_path {run.curves.folder / 'checkpoints' / 'best.ckpt'}"
        return _section(
            "Scorecard",
            f"<p>Not measured yet: <code>{escape(command)}</code>, then "
            f"<code>slm report {escape(str(run.curves.folder))}</code>.</p>",
        )
    families = [("minimal pairs", "right", "95 % interval", "pairs", "asks (chance: 50 %)")]
    for name, found in card["pairs"].items():
        low, high = found["interval_95"]
        asks = FAMILIES[name][1] if name in FAMILIES else ""
        interval = f"{low:.1%} to {high:.1%}"
        families.append((name, f"{found['accuracy']:.1%}", interval, str(found["pairs"]), asks))
    parts = [
        f"<p>Of the checkpoint at step {card['about']['step']:,}. Mean of the families: "
        f"<b>{_number(card['score'], '.1%')}</b>.</p>",
        _grid(families),
    ]
    if card["generated"]:
        manner: list[Sequence[str]] = [("stories", "generated", "held out")]
        real = card["held_out_stories"] or {}
        for name, (words, form) in MANNER_WORDS.items():
            values = (card["generated"].get(name), real.get(name))
            manner.append((words, *("–" if v is None else form.format(v) for v in values)))
        parts.append(_grid(manner))
    about = card["about"]
    if loss := card["loss"]:
        rows = [("loss", "nats per token", "bits per byte", "vocabulary", "source")]
        rows.append(
            ("this model", f"{loss['loss']:.3f}", f"{loss['bits_per_byte']:.3f}",
             about["tokenizer"], f"{loss['tokens']:,} tokens of {about['held_out']}")
        )  # fmt: skip
        rows += [
            (peer["name"], _number(peer["nats_per_token"], ".3f"),
             _number(peer["bits_per_byte"], ".3f"), peer["tokenizer"], peer["source"])
            for peer in card["peers"]
        ]  # fmt: skip
        parts.append(_grid(rows))
    if judge := card.get("judge"):
        grades = ", ".join(f"{name} {value:.1f}" for name, value in judge["grades"].items())
        parts.append(f"<p>Judge {escape(judge['model'])}: {escape(grades)} of 10.</p>")
    parts.append(_copies(card["stories"]))
    return _section("Scorecard", "\n".join(parts))


def _copies(stories: Iterable[dict[str, Any]]) -> str:
    copies = [story for story in stories if story["memorised"]]
    shown = "".join(
        f"<details><summary>{story['overlap']['longest']} of {story['overlap']['tokens']} tokens "
        f"stand in the training text</summary><p>{escape(story['prompt'] + story['text'])}</p>"
        "</details>"
        for story in copies
    )
    return f"<h3>Stories taken from the training text: {len(copies)}</h3>{shown}"


# ---- HTML -------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<dl>{cells}</dl>"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    return f'<div class="grid"><table><tr>{head}</tr>{body}</table></div>'


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 960px; padding: 1rem; }
h1 { margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { border-bottom: 2px solid #0072b2; margin-top: 2.5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.tiles div { background: #f1f5f9; border-radius: .5rem; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.4rem; }
.tiles span { font-size: .8rem; color: #555; }
dl { display: grid; grid-template-columns: 8rem 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { font-size: .85rem; color: #555; }
details { border-left: 3px solid #d0d7de; padding: .1rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
details p { white-space: pre-wrap; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .8rem; }
code { background: #f6f8fa; overflow-wrap: anywhere; }
.grid { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e2e8f0;
  vertical-align: top; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
  img { max-width: none; width: 36rem; }  /* to be read by pushing it sideways */
  figcaption { position: sticky; left: 0; }
}
@media print { details { break-inside: avoid; } figure { break-inside: avoid; } }
</style>
</head>
<body>
{body}
</body>
</html>
"""
