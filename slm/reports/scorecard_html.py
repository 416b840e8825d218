"""The scorecard in a run's report."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from slm.evaluation.pairs import FAMILIES
from slm.evaluation.scorecard import FORMAT_VERSION, STATISTICS
from slm.files import parse_json, quoted, shortened
from slm.reports.page import folded, number, section, table
from slm.training.checkpoint import Checkpoint


def read_card(path: Path) -> dict[str, Any]:
    """The contents of a `scorecard.json`; {} if it is damaged, or of another version."""
    try:
        card = parse_json(path.read_bytes())
    except ValueError:
        return {}
    known = isinstance(card, dict) and card.get("format_version") == FORMAT_VERSION
    return card if known else {}


def scorecard_section(
    card: dict[str, Any] | None, checkpoint: Checkpoint | None, folder: Path
) -> str:
    """The part of a run's report that shows its scorecard, or says how to get one."""
    command = (
        f"<code>slm evaluate --ckpt_path {escape(quoted(shortened(checkpoint.path)))}</code>, then "
        f"<code>slm report {escape(quoted(shortened(folder)))}</code>"
        if checkpoint
        else "it takes a checkpoint, and this run has none"
    )
    if card is None:
        return section("Scorecard", f"<p>Not measured yet: {command}.</p>")
    try:
        parts = _card(card)
        step, fingerprint = (card["about"][name] for name in ("step", "fingerprint"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return section(
            "Scorecard",
            f"<p>scorecard.json is damaged, or of another version. Again: {command}.</p>",
        )
    if checkpoint and fingerprint != checkpoint.fingerprint():
        parts.insert(
            0,
            f"<p><b>Of other weights than the figures below</b>: those of step {step:,}, not of "
            f"{escape(checkpoint.path.name)}, step {checkpoint.step:,}. Again: {command}.</p>",
        )
    return section("Scorecard", "\n".join(parts))


def _card(card: dict[str, Any]) -> list[str]:
    """A scorecard's tables and stories."""
    about, judge = card["about"], card["judge"]
    parts = [
        f"<p>Of the checkpoint at step {about['step']:,}. Mean of "
        f"{sum(found['pairs'] > 0 for found in card['pairs'].values())} of {len(FAMILIES)} "
        f"families: <b>{number(card['score'], '.1%')}</b>.</p>",
        _families(card["pairs"]),
        _manner(card["generated"], card["held_out_stories"]),
        _losses(card),
        *_requests(card.get("requests")),
    ]
    if judge:
        grades = ", ".join(f"{name} {value:.1f}" for name, value in judge["grades"].items())
        parts.append(
            f"<p>Judge {escape(judge['model'])}: {escape(grades)} of 10 "
            f"({escape(str(judge['graded']))} of {escape(str(judge['stories']))} stories graded"
            f"{escape(', then it stopped: ' + str(judge['stopped'])) if judge['stopped'] else ''}"
            ").</p>"
        )
    return [*parts, _copies(card["stories"])]


def _families(pairs: dict[str, dict[str, Any]]) -> str:
    rows = [("minimal pairs", "right", "95 % interval", "pairs", "too long", "asks (chance: 50 %)")]
    for name, found in pairs.items():
        interval = found["interval_95"]
        between = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "–"
        counts = (str(found["pairs"]), str(found["left_out"]))
        asks = FAMILIES[name][1] if name in FAMILIES else ""
        rows.append((name, number(found["accuracy"], ".1%"), between, *counts, asks))
    return table(rows)


def _manner(generated: dict[str, Any], real: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = [("stories", "generated", "held out")]
    for name, (words, form) in STATISTICS.items():
        values = (generated[name], real[name])
        rows.append((words, *("–" if v is None else form.format(v) for v in values)))
    return table(rows)


def _losses(card: dict[str, Any]) -> str:
    loss, about = card["loss"], card["about"]
    rows = [("loss", "nats per token", "bits per byte", "vocabulary", "source")]
    rows.append(
        ("this model", f"{loss['loss']:.3f}", f"{loss['bits_per_byte']:.3f}",
         about["tokenizer"], f"{loss['tokens']:,} tokens of {about['held_out']}")
    )  # fmt: skip
    rows += [
        (peer["name"], number(peer["nats_per_token"], ".3f"),
         number(peer["bits_per_byte"], ".3f"), peer["tokenizer"], peer["source"])
        for peer in card["peers"]
    ]  # fmt: skip
    return table(rows)


def _requests(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    rows = [("requested words that occur", "share", "95 % interval")]
    for name, label in (("requested", "when they are requested"), ("plain", "else")):
        low, high = found[name]["interval_95"]
        rows.append((label, f"{found[name]['share']:.1%}", f"{low:.1%} to {high:.1%}"))
    return [table(rows)]


def _copies(stories: Iterable[dict[str, Any]]) -> str:
    stories = list(stories)
    if stories and all(story["memorised"] is None for story in stories):
        return "<p>The training text was not there to compare the stories with.</p>"
    copies = [story for story in stories if story["memorised"]]
    shown = "".join(
        folded(
            f"{story['overlap']['longest']} of {story['overlap']['tokens']} tokens occur in the "
            "training text",
            story["prompt"] + story["text"],
        )
        for story in copies
    )
    return f"<h3>Stories taken from the training text: {len(copies)}</h3>{shown}"
