"""The verb `evaluate`: a scorecard of a model's stories."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slm.commands.lookup import find_checkpoint_argument
from slm.commands.parsing import QuickParser, os_errors_explained, output_path, quick_parser
from slm.data.source import describe_source
from slm.errors import UserError
from slm.evaluation import scorecard as card
from slm.evaluation.generated import GeneratedStory
from slm.evaluation.judge import Judge, grade_stories
from slm.evaluation.texts import Texts, texts_of
from slm.hardware import Accelerator, describe_machine, find_device
from slm.model import GPT
from slm.training.checkpoint import Checkpoint


@os_errors_explained()
def run_evaluate(words: Sequence[str]) -> int:
    """Measures a model and prints its scorecard.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    rest, checkpoint = find_checkpoint_argument("evaluate", list(words))
    options = _make_parser().parse_args(rest)
    assert checkpoint is not None  # parse_args has printed the help and left, otherwise
    settings = _settings(options)
    json_file = output_path("--json", options.json) if options.json else None
    judge = _judge(options)
    device = _device(options)
    stories = _read_stories(Path(options.generations)) if options.generations else None
    held_out, trained_on = _texts(checkpoint, options)
    if judge is not None:
        _say("whether the judge answers")
        if (
            judge.grade(GeneratedStory("Once upon a time", " there was a cat. It slept.", True))
            is None
        ):
            _say(f"going on, though {judge.model} gave a first story no grades")
    torch.manual_seed(settings.seed)
    model = GPT(checkpoint.gpt) if options.untrained else checkpoint.make_model()
    tokenizer = checkpoint.make_tokenizer()
    about = {
        "checkpoint": str(checkpoint.path),
        "step": 0 if options.untrained else checkpoint.step,
        "fingerprint": None if options.untrained else checkpoint.fingerprint(),
        "parameters": str(model.parameter_counts()),
        "tokenizer": f"{tokenizer.name}, {tokenizer.n_vocab:,}",
        "held_out": describe_source(held_out.manifest.source),
        "options": {"stories": settings.stories, "seed": settings.seed},
        "machine": describe_machine(device),
    }
    print(
        f"Checkpoint {'an untrained model of the shape of ' if options.untrained else ''}"
        f"{checkpoint.path}, step {about['step']:,}\n"
        f"Model      {about['parameters']}\n"
        f"Held out   {about['held_out']}, in {held_out.folder}",
        file=sys.stderr,
    )
    found = card.measure(
        model.to(device).eval(), held_out, trained_on, settings, about, stories, _say
    )
    # The run's own card is of its own model, stories and data.
    foreign = options.untrained or options.generations or options.data.source
    folder = None if foreign else _run_of(checkpoint)
    kept = None
    try:
        _keep(found, folder, json_file)
        kept = folder
        if judge is not None:
            _say("the judge")
            found.judge = grade_stories(judge, [told for told, _ in found.told])
            _keep(found, folder, json_file)
    finally:  # a judge that does not answer takes nothing else away
        print(card.as_text(found))
        if kept:
            _draw(found, kept, checkpoint.step)
            print(f"\nScorecard  {kept / 'scorecard.json'}; slm report {kept} shows it")
    return 0


def _make_parser() -> QuickParser:
    parser = quick_parser("evaluate", "slm evaluate [--ckpt_path FILE] [--option value ...]")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="A checkpoint file, a run, or `last` or `best` of the newest run, which is also the "
        "default.",
    )
    parser.add_class_arguments(card.Options)
    for name, kind, default, words in (
        ("untrained", bool, False, "Measure a fresh model of that shape instead: where chance is."),
        (
            "generations",
            str | None,
            None,
            "Look at these stories instead of having some told: JSON lines with `text` or `story`, "
            "and perhaps `prompt`, as `predict --out` writes them.",
        ),
        ("data.source", str | None, None, "Held-out stories of other data than the model's own."),
        ("data.root", str | None, None, "Where prepared data lie."),
        ("judge.url", str | None, None, "An OpenAI-compatible service that grades the stories."),
        ("judge.model", str | None, None, "Which of its models. Key: OPENAI_API_KEY."),
        ("json", str | None, None, "Also write everything to a file."),
        ("trainer.accelerator", Accelerator, "auto", "The device; `auto` takes the best."),
        ("trainer.default_root_dir", str | None, None, "Where lightning_logs is."),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=words)
    return parser


def _settings(options: Any) -> card.Options:
    """What to measure.

    Raises:
        UserError: An option is out of range.
    """
    try:
        return card.Options(options.stories, options.loss_tokens, options.seed)
    except ValueError as error:
        raise UserError.from_value_error(error, "slm evaluate --help explains it") from error


def _judge(options: Any) -> Judge | None:
    """The judge, if one is asked for.

    Raises:
        UserError: It has an address or a model only, or the key cannot be sent.
    """
    url, model = options.judge.url, options.judge.model
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
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise UserError(
            "OPENAI_API_KEY holds signs that cannot be sent",
            "one line of letters and digits",
            "set it anew: a line break may have got into it",
        )
    return Judge(url, model, key or None)


def _device(options: Any) -> torch.device:
    """The device.

    Raises:
        UserError: There is no such one.
    """
    try:
        return find_device(options.trainer.accelerator)
    except ValueError as error:
        raise UserError.from_value_error(error, "slm evaluate --help explains it") from error


def _texts(checkpoint: Checkpoint, options: Any) -> tuple[Texts, Texts | None]:
    """The held-out stories, and the training text.

    Raises:
        UserError: There are no held-out stories.
    """
    own: Texts | None = None
    try:
        own = texts_of(checkpoint, None, options.data.root)
        trained = (checkpoint.entry["data"] or {}).get("splits", {})
        for split in ("train", "validation"):
            if own.manifest.splits[split].sha256 != trained.get(split, {}).get("sha256"):
                raise UserError(
                    f"{own.folder} holds other data than the checkpoint was trained beside",
                    "the same",
                    "name stories that it has not seen: --data.source stories.txt",
                )
    except UserError as error:
        if options.data.source is None:
            raise
        own = None
        print(f"No training text to compare with: {error.found}", file=sys.stderr)
    if options.data.source is None:
        assert own is not None
        return own, own
    return texts_of(checkpoint, options.data.source, options.data.root), own


def _read_stories(path: Path) -> list[GeneratedStory]:
    """Stories from JSON lines.

    Raises:
        UserError: The file is not there, cannot be understood, or holds none.
    """
    remedy = "slm predict --num_samples 50 --out stories.jsonl"
    if not path.is_file():
        raise UserError(f"--generations {path} is not there", "a file of stories", remedy)
    stories = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            if line.strip():
                stories.append(_as_generated(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--generations {path}, line {number}, cannot be understood: {error!r}",
                "JSON with a `text` or a `story`, as `slm predict --out` writes it",
                remedy,
            ) from error
    if not stories:
        raise UserError(f"--generations {path} holds no story", "a story on each line", remedy)
    return stories


def _as_generated(line: Any) -> GeneratedStory:
    text = line["text"] if "text" in line else line["story"]
    prompt = str(line.get("prompt") or "")
    ended = line.get("ended")
    return GeneratedStory(
        prompt,
        str(text).removeprefix(prompt),
        None if ended is None else ended in ("end of text", True),
    )


def _run_of(checkpoint: Checkpoint) -> Path | None:
    """The run that a checkpoint lies in, if it lies in one."""
    run = checkpoint.path.resolve().parent.parent
    return run if any(run.glob("events.out.tfevents.*")) else None


def _keep(found: card.Scorecard, folder: Path | None, json_file: Path | None) -> None:
    """Writes the card into the run, and where it was asked for."""
    if json_file:
        found.save(json_file)
    if folder:
        found.save(folder / "scorecard.json")


def _draw(found: card.Scorecard, folder: Path, step: int) -> None:
    """Writes the card into TensorBoard.

    In a folder of its own: TensorBoard leaves a run's older file for its newest, and would not
    follow a training that is still going on.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder / "scorecard")) as writer:
        for name, value in found.scalars().items():
            writer.add_scalar(name, value, step)
        writer.add_text("scorecard", f"```\n{card.as_text(found)}\n```", step)


def _say(what: str) -> None:
    print(f"Measuring  {what}", file=sys.stderr, flush=True)
