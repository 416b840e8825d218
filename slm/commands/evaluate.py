"""The verb `evaluate`: a scorecard of a model's stories."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm.commands.lookup import open_named
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.device import DeviceOptions
from slm.commands.parsing.errors import output_path
from slm.commands.parsing.keys import read_key
from slm.commands.parsing.options import inline, parse
from slm.data.source import describe_source
from slm.errors import UserError
from slm.evaluation import scorecard
from slm.evaluation.generated import GeneratedStory
from slm.evaluation.judge import Judge, grade_stories
from slm.evaluation.texts import Texts, texts_of
from slm.files import parse_json, quoted
from slm.hardware import describe_machine
from slm.model import GPT
from slm.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class DataOptions:
    """Which stories the model has not seen."""

    source: str | None = None
    """Evaluate on the held-out stories of this source, not of the model's own data."""
    root: str | None = None
    """The folder of prepared data."""


@dataclass(frozen=True)
class JudgeOptions:
    """A language model that grades the stories."""

    url: str | None = None
    """An OpenAI-compatible service that grades the stories."""
    model: str | None = None
    """Which of its models. Key: OPENAI_API_KEY."""


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `evaluate`."""

    ckpt_path: str | None = None
    """A checkpoint file, a run, or `last` or `best` of the newest run, which is also the
    default."""
    measure: scorecard.Options = inline(scorecard.Options())
    untrained: bool = False
    """Measure a randomly initialised model of that shape instead: the chance baseline."""
    generations: str | None = None
    """Measure these stories instead of generating some: JSON lines with `text` or `story`, and
    perhaps `prompt`, as `predict --out` writes them."""
    data: DataOptions = DataOptions()
    judge: JudgeOptions = JudgeOptions()
    json: str | None = None
    """Also write everything to a file."""
    trainer: DeviceOptions = DeviceOptions()


def evaluate(arguments: Arguments) -> int:
    """Measures a model and prints its scorecard."""
    usage = "slm evaluate [--ckpt_path FILE] [--option value ...]"
    options = parse("evaluate", EvaluateOptions, _renamed(arguments), usage)
    json_file = output_path("--json", options.json)
    judge, device = _make_judge(options.judge), options.trainer.device
    checkpoint = open_named(options.ckpt_path, options.trainer.logs)
    stories = _read_stories(Path(options.generations)) if options.generations else None
    held_out, trained_on = _find_texts(checkpoint, options.data)
    if judge is not None:
        _print("whether the judge answers")  # before a long measurement
        sample = GeneratedStory("Once upon a time", " there was a cat. It slept.", True)
        if judge.grade(sample) is None:
            _print(f"continuing, although {judge.model} gave a first story no grades")
    torch.manual_seed(options.measure.seed)
    model = GPT(checkpoint.gpt) if options.untrained else checkpoint.make_model()
    about = _about(options, checkpoint, held_out, model)
    card = scorecard.measure(
        model.to(device).eval(),
        held_out,
        trained_on,
        options.measure,
        about,
        stories,
        checkpoint.takes_words,
        _print,
    )
    # The run's own scorecard is of its own model, stories and data.
    foreign = options.untrained or options.generations or options.data.source
    run = checkpoint.run.folder if not foreign and checkpoint.run.has_curves else None
    files = [path for path in (json_file, run and run / "scorecard.json") if path]
    saved = False
    try:
        for path in files:
            card.save(path)
        saved = True
        if judge is not None:
            _print("the judge")
            card.judge = grade_stories(judge, [story for story, _ in card.stories])
            for path in files:
                card.save(path)
    finally:  # a judge that does not answer takes nothing else away
        print(scorecard.as_text(card))
        if run and saved:
            _log(card, run, checkpoint.step)
            print(f"\nScorecard  {run / 'scorecard.json'}; slm report {quoted(run)} shows it")
    return 0


def _renamed(arguments: Arguments) -> Arguments:
    """The arguments with `--stories`, which was misleading, under its present name."""
    if "--stories" not in arguments.given:
        return arguments
    print("--stories counts pairs and is now called --pairs", file=sys.stderr)
    return Arguments([f"--pairs={arguments.take('--stories')}", *arguments])


def _about(
    options: EvaluateOptions, checkpoint: Checkpoint, held_out: Texts, model: GPT
) -> dict[str, Any]:
    """What is measured, on what; printed, and saved in the scorecard."""
    tokenizer = held_out.tokenizer
    about = {
        "checkpoint": str(checkpoint.path),
        "step": 0 if options.untrained else checkpoint.step,
        "fingerprint": None if options.untrained else checkpoint.fingerprint(),
        "parameters": str(model.parameter_counts()),
        "tokenizer": f"{tokenizer.name}, {tokenizer.n_vocab:,}",
        "held_out": describe_source(held_out.manifest.source),
        "options": {"stories": options.measure.pairs, "seed": options.measure.seed},
        "machine": describe_machine(options.trainer.device),
    }
    shape_only = "a model with random weights of the shape of " if options.untrained else ""
    print(
        f"Checkpoint {shape_only}{checkpoint.path}, step {about['step']:,}\n"
        f"Model      {about['parameters']}\n"
        f"Held out   {about['held_out']}, in {held_out.folder}",
        file=sys.stderr,
    )
    return about


def _make_judge(options: JudgeOptions) -> Judge | None:
    """The judge, if one is asked for."""
    url, model = options.url, options.model
    if not url and not model:
        return None
    if not url or not model:
        raise UserError(
            "--judge.url without --judge.model" if url else "--judge.model without --judge.url",
            "both",
            "--judge.url http://localhost:8000/v1 --judge.model NAME",
        )
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"--judge.url {url}", "an address that begins with http:// or https://", f"http://{url}"
        )
    return Judge(url, model, read_key("OPENAI_API_KEY"))


def _find_texts(checkpoint: Checkpoint, options: DataOptions) -> tuple[Texts, Texts | None]:
    """The held-out stories, and the training text if it is found."""
    own: Texts | None = None
    try:
        own = texts_of(checkpoint, None, options.root)
        checkpoint.check_data(own.folder, own.manifest, "train", "validation")
    except UserError as error:
        if options.source is None:
            raise
        own = None
        print(f"No training text to compare with: {error.found}", file=sys.stderr)
    if options.source is not None:
        return texts_of(checkpoint, options.source, options.root), own
    assert own is not None
    return own, own


def _read_stories(path: Path) -> list[GeneratedStory]:
    """Stories from JSON lines."""
    remedy = "slm predict --num_samples 50 --out stories.jsonl"
    if not path.is_file():
        raise UserError(f"--generations {path} does not exist", "a file of stories", remedy)
    stories = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            if line.strip():
                stories.append(_as_generated(parse_json(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--generations {path}, line {number}, cannot be understood: {error!r}",
                "JSON with a `text` or a `story`, as `slm predict --out` writes it",
                remedy,
            ) from error
    if not stories:
        raise UserError(f"--generations {path} contains no story", "a story on each line", remedy)
    return stories


def _as_generated(line: Any) -> GeneratedStory:
    text = str(line["text"] if "text" in line else line["story"])
    prompt, ended = str(line.get("prompt") or ""), line.get("ended")
    whole = None if ended is None else ended in ("end of text", True)
    return GeneratedStory(prompt, text.removeprefix(prompt), whole)


def _log(card: scorecard.Scorecard, run: Path, step: int) -> None:
    """Writes the scorecard into TensorBoard.

    In a folder of its own: TensorBoard replaces a run's older file by its newest, and would not
    follow a training that is still running.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(run / "scorecard")) as writer:
        for name, value in card.scalars().items():
            writer.add_scalar(name, value, step)
        writer.add_text("scorecard", f"```\n{scorecard.as_text(card)}\n```", step)


def _print(what: str) -> None:
    print(f"Measuring  {what}", file=sys.stderr, flush=True)
