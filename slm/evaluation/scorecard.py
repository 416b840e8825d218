"""The scorecard: all measurements of one model, and how they are printed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slm.evaluation.generated import (
    GeneratedStory,
    StoryStatistics,
    compare,
    describe,
    generate_stories,
    is_copy,
)
from slm.evaluation.likelihood import Accuracy, score_pairs
from slm.evaluation.loss import measure_loss
from slm.evaluation.overlap import Overlap, overlaps
from slm.evaluation.pairs import FAMILIES, make_pairs, sentences
from slm.evaluation.peers import PEERS
from slm.evaluation.requested import RequestedWords, measure_requests
from slm.evaluation.texts import Texts
from slm.files import json_text, replacing
from slm.generation import SamplingOptions
from slm.model import GPT
from slm.model.config import check
from slm.printable import printable

FORMAT_VERSION = 2
_STORIES_A_PAIR = 20


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pairs: int = 300
    """Minimal pairs of each family at most, 10 or more, found in twenty times as many held-out
    stories at most."""
    loss_tokens: int | None = 100_000
    """Tokens at the beginning of the validation split to measure the loss on; null takes all."""
    seed: int = 1337
    """Seed of the pairs and of the generated stories."""

    def __post_init__(self) -> None:
        tokens = self.loss_tokens
        check(self, "pairs", self.pairs >= 10, "10 or more")
        check(self, "loss_tokens", tokens is None or tokens >= 1, "1 or more, or null for all")
        check(self, "seed", 0 <= self.seed < 2**62, "from 0 to 2^62 - 1")


@dataclass
class Scorecard:
    """All measurements."""

    about: dict[str, Any]
    """The model and the data."""
    families: dict[str, Accuracy] = field(default_factory=dict)
    """All of them; one may have no pair."""
    generated: StoryStatistics | None = None
    real: StoryStatistics | None = None
    """The same statistics of as many held-out stories: what a perfect model would approach."""
    stories: list[tuple[GeneratedStory, Overlap | None]] = field(default_factory=list)
    """The stories, and what each shares with the training text if there is one."""
    loss: dict[str, float] = field(default_factory=dict)
    requests: RequestedWords | None = None
    """Only of a model that was trained on requests."""
    judge: dict[str, Any] | None = None

    @property
    def score(self) -> float | None:
        """Mean share of minimal pairs passed; each family with pairs has the same weight."""
        shares = [accuracy.share for accuracy in self.measured.values()]
        return sum(shares) / len(shares) if shares else None

    @property
    def measured(self) -> dict[str, Accuracy]:
        """The families with pairs."""
        return {name: accuracy for name, accuracy in self.families.items() if accuracy.pairs}

    def to_plain(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "format_version": FORMAT_VERSION,
            "about": self.about,
            "score": self.score,
            "pairs": {
                family: {
                    "pairs": a.pairs,
                    "passed": a.passed,
                    "left_out": a.left_out,
                    "accuracy": a.share if a.pairs else None,
                    "interval_95": list(a.interval()) if a.pairs else None,
                    "chance": 0.5,
                }
                for family, a in self.families.items()
            },
            "generated": asdict(self.generated) if self.generated else None,
            "held_out_stories": asdict(self.real) if self.real else None,
            "stories": [
                asdict(story)
                | {"overlap": asdict(o) if o else None, "memorised": is_copy(o) if o else None}
                for story, o in self.stories
            ],
            "loss": self.loss,
            "requests": self.requests.to_plain() if self.requests else None,
            "peers": [asdict(peer) for peer in PEERS],
            "judge": self.judge,
        }

    def save(self, path: Path) -> None:
        """Writes JSON, atomically."""
        with replacing(path) as temporary:
            temporary.write_text(json_text(self.to_plain()), encoding="utf-8")

    def scalars(self) -> dict[str, float]:
        """The figures by name, for curves."""
        found = {f"pairs/{name}": a.share for name, a in self.measured.items()}
        if self.score is not None:
            found["pairs/score"] = self.score
        for name, value in asdict(self.generated).items() if self.generated else []:
            if value is not None:
                found[f"stories/{name}"] = float(value)
        found |= {f"loss/{name}": value for name, value in self.loss.items()}
        if self.requests:
            found["requests/requested"] = self.requests.requested.share
            found["requests/plain"] = self.requests.plain.share
        if self.judge:
            found |= {f"judge/{name}": value for name, value in self.judge["grades"].items()}
        return {f"scorecard/{name}": value for name, value in found.items()}


Say = Callable[[str], None]


def measure(
    model: GPT,
    held_out: Texts,
    trained_on: Texts | None,
    options: Options,
    about: dict[str, Any],
    stories: Sequence[GeneratedStory] | None = None,
    takes_words: bool = False,
    say: Say = lambda _: None,
) -> Scorecard:
    """Measures a model in evaluation mode, on the given stories or on some that it generates.

    `takes_words` says that it was trained on requests, which are then measured, too.
    """
    tokenizer = held_out.tokenizer
    card = Scorecard(about)
    texts = held_out.held_out(options.pairs * _STORIES_A_PAIR)
    for family, pairs in make_pairs(texts, options.seed, options.pairs).items():
        say(f"{family}: {len(pairs)} pairs")
        card.families[family] = score_pairs(model, tokenizer, pairs)
    say("loss")
    windows = held_out.windows(model.config.block_size)
    card.loss = measure_loss({"": model}, windows, tokenizer, options.loss_tokens)[""]
    if takes_words:
        say("requested words")
        card.requests = measure_requests(model, tokenizer, texts, options.seed)
    if stories is None:
        say("generating stories")
        stories = generate_stories(model, tokenizer, SamplingOptions(seed=options.seed))
    real = [_as_generated(text) for text in texts[: len(stories)]]
    card.generated, card.real = describe(stories), describe(real)
    card.stories = [(story, None) for story in stories]
    if trained_on is not None:
        say("comparing with the training text")
        frequent = trained_on.frequent_words()
        everything = [*stories, *real]
        shared = overlaps(
            [tokenizer.encode(story.text) for story in everything], trained_on.training()
        )
        split = len(stories)
        card.generated = compare(card.generated, stories, shared[:split], frequent)
        card.real = compare(card.real, real, shared[split:], frequent)
        card.stories = list(zip(stories, shared[:split], strict=True))
    return card


def _as_generated(story: str) -> GeneratedStory:
    """A real story as a continuation of its first two sentences, which are as long as a prompt."""
    parts = sentences(story)
    begin = 2 if len(parts) > 2 else 0
    return GeneratedStory("".join(parts[:begin]), "".join(parts[begin:]), None)


# ---- as text --------------------------------------------------------------------------------


def as_text(card: Scorecard) -> str:
    """The scorecard as tables for a terminal."""
    lines = [f"{'minimal pairs':15}  right  95 % interval   pairs  asks (chance: 50 %)"]
    for family, (_, asks) in FAMILIES.items():
        accuracy = card.families[family]
        if accuracy.pairs:
            low, high = accuracy.interval()
            cells = f"{accuracy.share:6.1%}  {low:5.1%} to {high:6.1%} {accuracy.pairs:6}"
        else:
            cells = f"{'-':>6}  {'':15} {0:6}"
        lines.append(f"{family:15} {cells}  {asks}")
        if accuracy.left_out:
            lines.append(f"{'':32}({accuracy.left_out:,} more do not fit into the context)")
    if card.score is not None:
        of = f"{len(card.measured)} of {len(FAMILIES)}"
        lines.append(f"{'score':15} {card.score:6.1%}  (mean of {of} families)")
    if card.loss:
        lines += ["", *_loss_lines(card)]
    if card.requests:
        lines += ["", *_request_lines(card.requests)]
    if card.generated:
        lines += ["", *_statistics_lines(card.generated, card.real)]
    if copies := [(story, o) for story, o in card.stories if o and is_copy(o)]:
        lines += [
            "",
            f"{len(copies)} of {len(card.stories)} stories are taken from the training text:",
        ]
        for story, o in copies[:5]:
            text = printable(" ".join((story.prompt + story.text).split()))
            lines.append(f"  {o.longest} of {o.tokens} tokens: {text[:90]} …")
    if card.judge:
        grades = ", ".join(f"{name} {value:.1f}" for name, value in card.judge["grades"].items())
        lines += [
            "",
            f"judge           {grades} of 10, by {card.judge['model']} "
            f"({card.judge['graded']} of {card.judge['stories']} stories graded)",
        ]
        if card.judge["stopped"]:
            lines.append(f"                then it stopped: {card.judge['stopped']}")
    return "\n".join(lines)


def _loss_lines(card: Scorecard) -> list[str]:
    loss = card.loss
    lines = [
        f"{'loss':28} nats/token  perplexity  bits/byte  vocabulary",
        f"{'this model':28} {loss['loss']:10.3f}  {loss['perplexity']:10.2f}  "
        f"{loss['bits_per_byte']:9.3f}  {card.about['tokenizer']}; {loss['tokens']:,.0f} tokens of "
        f"{card.about['held_out']}",
    ]
    for peer in PEERS:
        nats = f"{peer.nats_per_token:10.3f}" if peer.nats_per_token else f"{'-':>10}"
        bits = f"{peer.bits_per_byte:9.3f}" if peer.bits_per_byte else f"{'-':>9}"
        lines.append(f"{peer.name:28} {nats}  {'':10}  {bits}  {peer.tokenizer}")
    lines.append("(Nats per token compare within one vocabulary only, bits per byte always.)")
    return lines


def _request_lines(found: RequestedWords) -> list[str]:
    lines = [f"{'requested words that occur':28}  share  95 % interval"]
    for name, side in (("when they are requested", found.requested), ("else", found.plain)):
        low, high = side.interval()
        lines.append(f"{name:28} {side.share:6.1%}  {low:5.1%} to {high:6.1%}")
    lines.append(f"({found.words} words of {found.requested.pairs} held-out stories, same seeds.)")
    return lines


STATISTICS: dict[str, tuple[str, str]] = {
    "ended": ("come to an end by themselves", "{:.0%}"),
    "words": ("words each", "{:.0f}"),
    "repetition": ("repeated sequences of four words", "{:.1%}"),
    "distinct_1": ("distinct words, of the first 60 each", "{:.3f}"),
    "distinct_2": ("distinct pairs of words", "{:.3f}"),
    "rare_words": ("words beyond the 1,000 commonest", "{:.1%}"),
    "unknown_words": ("words that the training text lacks", "{:.1%}"),
    "names_kept": ("name their character again", "{:.0%}"),
    "longest_copy": ("tokens copied in a row, median", "{:.0f}"),
    "novel_5_grams": ("novel sequences of five tokens", "{:.1%}"),
    "memorised": ("taken from the training text", "{:.0%}"),
}
"""Label and format of each statistic."""


def _statistics_lines(generated: StoryStatistics, real: StoryStatistics | None) -> list[str]:
    lines = [f"{'stories':38} {'generated':>10}  {'held out':>10}"]
    lines.append(f"{'':38} {generated.stories:>10}  {real.stories if real else 0:>10}")
    for name, (words, form) in STATISTICS.items():
        values = [
            getattr(statistics, name) if statistics else None for statistics in (generated, real)
        ]
        cells = [form.format(value) if value is not None else "-" for value in values]
        lines.append(f"{words:38} {cells[0]:>10}  {cells[1]:>10}")
    return lines
