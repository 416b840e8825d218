"""The model card: what a stranger must know about a model, in Markdown.

Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv 1810.03993), in short.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.data.source import describe_source
from slm.data.tokenizer import Tokenizer
from slm.generation import SamplingOptions
from slm.generation.quantization import for_inference
from slm.generation.storyteller import PROMPT, StoryRequest, Storyteller
from slm.model import GPT
from slm.printable import printable
from slm.reports.page import number
from slm.reports.run_report import energy
from slm.reports.scorecard_html import read_card
from slm.training.callbacks.time_budget import format_duration
from slm.training.checkpoint import Checkpoint

_SEEDS = (1337, 1338, 1339)
_TINYSTORIES = "roneneldan/TinyStories"
_LICENCES = {
    f"hub:{_TINYSTORIES}": "TinyStories is published under the CDLA-Sharing-1.0 licence.",
    "builtin": "The built-in stories come with slm, under the MIT licence.",
}


def model_card(checkpoint: Checkpoint, model: GPT, tokenizer: Tokenizer) -> str:
    """The card, written from the checkpoint and from what is left of its run."""
    data = checkpoint.entry["data"] or {}
    source = _public(data["source"]) if data else "unknown"
    sections = {
        "Model": _model(checkpoint, model, tokenizer),
        "Data": _data(data, source),
        "Training": _training(checkpoint),
        "Evaluation": _evaluation(checkpoint),
        "Samples": _samples(model, tokenizer),
        "Limits": _limits(model),
        "How to cite": [_CITATION],
    }
    head = ["---", "language: en", "pipeline_tag: text-generation"]
    if source == f"hub:{_TINYSTORIES}":
        head.append(f"datasets: {_TINYSTORIES}")
    origin = checkpoint.entry.get("origin")
    summary = f"A small GPT, {origin or _FROM_SCRATCH} with slm (package `slm-stories`)."
    if origin:
        summary += " The licence of the model that it comes from applies."
    lines = [*head, "---", "", f"# {checkpoint.label}", "", summary]
    for title, found in sections.items():
        lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


_FROM_SCRATCH = "trained from scratch"

_CITATION = """\
```bibtex
@software{slm, title = {slm: train a small language model from scratch and generate stories with it}}
@misc{eldan2023tinystories,
  title = {TinyStories: How Small Can Language Models Be and Still Speak Coherent English?},
  author = {Ronen Eldan and Yuanzhi Li}, year = {2023}, eprint = {2305.07759}
}
```"""  # noqa: E501


def _public(source: str | list[str]) -> str:
    """A source without the folders of this machine."""
    specs = [source] if isinstance(source, str) else source
    return describe_source([spec if ":" in spec else Path(spec).name for spec in specs])


def _model(checkpoint: Checkpoint, model: GPT, tokenizer: Tokenizer) -> Iterator[str]:
    shape = ", ".join(f"{name} {value}" for name, value in model.config.to_plain().items())
    yield f"- Parameters: {model.parameter_counts()}"
    yield f"- Config: {shape}"
    yield (
        f"- Vocabulary: byte-pair encoding ({tokenizer.name}), {tokenizer.n_vocab:,} tokens; "
        "end-of-text begins and ends every story"
    )
    yield f"- Checkpoint: step {checkpoint.step:,}, fingerprint `{checkpoint.fingerprint()}`"


def _data(data: dict[str, Any], source: str) -> Iterator[str]:
    yield f"- Source: {source}"
    for split, facts in data.get("splits", {}).items():
        yield (
            f"- {split}: {facts['stories']:,} stories, {facts['tokens']:,} tokens, "
            f"{facts['bytes']:,} bytes of text"
        )
    licence = _LICENCES.get(source, "see its source, which may restrict how you license the model.")
    yield f"- Licence of the data: {licence}"


def _training(checkpoint: Checkpoint) -> Iterator[str]:
    options = ", ".join(f"{name} {value}" for name, value in checkpoint.entry["training"].items())
    yield f"- Options: {options or 'unknown'}"
    record = checkpoint.run.record()
    for entry in record:
        yield (
            f"- {entry['tokens']:,} tokens in {format_duration(entry['seconds'])}, steps "
            f"{entry['first_step']:,} to {entry['last_step']:,}, {entry['precision']}, on "
            f"{entry['device']}: {entry['machine']}"
        )
    yield f"- Energy: {energy(record) if record else 'unknown'}"


def _evaluation(checkpoint: Checkpoint) -> Iterator[str]:
    if (loss := checkpoint.best_loss) is not None:
        facts = checkpoint.entry["data"]["splits"]["validation"]
        bits = loss * facts["tokens"] / facts["bytes"] / math.log(2)
        yield (
            f"- Best validation loss of its run: {loss:.4f} nats per token, {bits:.4f} bits per "
            "byte"
        )
    file = checkpoint.run.folder / "scorecard.json"
    card = read_card(file) if file.is_file() else {}
    try:
        measured = card["about"]["fingerprint"] == checkpoint.fingerprint()
        lines = list(_scorecard(card)) if measured else []
    except (KeyError, TypeError, ValueError):  # there is none, or it is damaged
        lines = []
    yield from lines or ["- Scorecard: not measured; `slm evaluate` measures it."]


def _scorecard(card: dict[str, Any]) -> Iterator[str]:
    loss = card["loss"]
    yield (
        f"- {loss['loss']:.4f} nats per token, {loss['bits_per_byte']:.4f} bits per byte, "
        f"perplexity {loss['perplexity']:.2f}, on {loss['tokens']:,.0f} tokens of "
        f"{card['about']['held_out']}"
    )
    score = number(card["score"], ".1%")
    yield f"- Minimal pairs: {score} correct (chance: 50 %), the mean of these families:"
    for family, found in card["pairs"].items():
        if found["pairs"]:
            low, high = found["interval_95"]
            yield (
                f"  - {family}: {found['accuracy']:.1%} of {found['pairs']} (95 % interval "
                f"{low:.1%} to {high:.1%})"
            )


def _samples(model: GPT, tokenizer: Tokenizer) -> Iterator[str]:
    options = SamplingOptions(max_new_tokens=200)
    yield (
        f"By `slm predict --prompt {PROMPT!r} --max_new_tokens 200 --weights fp32 --seed N`: "
        f"temperature {options.temperature}, top-k {options.top_k}; not selected."
    )
    requests = [
        StoryRequest(PROMPT, SamplingOptions(max_new_tokens=200, seed=seed)) for seed in _SEEDS
    ]
    storyteller = Storyteller(for_inference(model, "fp32", "cpu"), tokenizer)
    texts = dict.fromkeys(_SEEDS, PROMPT)
    for story, piece in storyteller.generate_all(requests, len(requests)):
        texts[story.request.options.seed] += piece
    for seed, text in texts.items():
        yield from ("", f"Seed {seed}:", "", *(f"> {line}" for line in printable(text).split("\n")))


def _limits(model: GPT) -> Iterator[str]:
    yield (
        "- It knows the world of its training stories and nothing else: it follows no instructions "
        "and answers no questions."
    )
    yield "- Its stories can contradict themselves and repeat sentences from the training text."
    yield (
        f"- It sees {model.config.block_size} tokens at most; earlier text is forgotten or "
        "refused, depending on the program."
    )
    yield "- Nothing filters what it writes. Read the stories before a child does."
