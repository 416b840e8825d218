"""The verb `info`: describes, and verifies, prepared data; describes a checkpoint."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.errors import output_path
from slm.commands.parsing.options import parse, positional
from slm.data.manifest import Manifest
from slm.data.source import describe_source
from slm.data.statistics import SplitStatistics, count_split, examples, histogram
from slm.data.tinystories import difference_from_known
from slm.data.verification import check_touched, verify
from slm.errors import UserError
from slm.files import json_text, parse_json, quoted
from slm.printable import printable

_CONTEXTS = (128, 256, 512, 1024)
_BAR = 40


@dataclass(frozen=True)
class InfoOptions:
    """The options of `info`."""

    path: str | None = positional("?")
    """A folder of prepared data, or a checkpoint."""
    verify: bool = field(default=False, metadata={"flag": True})
    """Recompute all that the manifest states, and name the first thing that differs."""
    seed: int = 1337
    """Draws the three stories shown."""
    json: str | None = None
    """Also write what is shown to a file."""


def info(arguments: Arguments) -> int:
    """Prints what a data folder or a checkpoint contains."""
    usage = "slm info FOLDER [--verify] [--seed N] [--json FILE]   or   slm info CHECKPOINT"
    options = parse("info", InfoOptions, arguments, usage)
    if options.path is None:
        raise UserError(
            "slm info without a folder", "what to describe", f"slm info {_some_folder()}"
        )
    path = Path(options.path).expanduser()
    if path.is_file():
        if options.verify:
            raise UserError(
                f"--verify for the file {path}",
                "a folder of prepared data; a checkpoint is checked by opening it",
                f"slm info {quoted(path)}",
            )
        if (path.parent / "manifest.json").exists():
            raise UserError(
                f"{path} is one file of prepared data",
                "their folder",
                f"slm info {quoted(path.parent)}",
            )
        facts, text = _describe_checkpoint(path)
    elif path.is_dir():
        _check_is_prepared(path)
        facts, text = _describe_folder(path, options.verify, options.seed)
    else:
        raise UserError(
            f"{path} does not exist",
            "a folder of prepared data, or a checkpoint",
            f"slm info {_some_folder()}",
        )
    if out := output_path("--json", options.json):
        out.write_text(json_text(facts), encoding="utf-8")
    print(text)
    return 0


def _check_is_prepared(folder: Path) -> None:
    """Checks that a folder contains prepared data."""
    if (folder / "manifest.json").exists():
        return
    plan = folder / "unfinished" / "plan.json"
    if plan.exists():
        total: object = "an unknown number of"
        with suppress(ValueError, LookupError, TypeError):
            total = len(parse_json(plan.read_bytes())["pieces"])
        finished = len(list(plan.parent.glob("?????.json")))
        raise UserError(
            f"{folder} contains an unfinished preparation: {finished} of {total} shards are "
            "finished",
            "prepared data",
            "repeat the command that prepared it; it continues from there",
        )
    inside = sorted(quoted(found.parent) for found in folder.glob("**/manifest.json"))
    raise UserError(
        f"{folder} is not a folder of prepared data: it contains no manifest.json",
        "a folder of prepared data, or a checkpoint",
        f"slm info {inside[0] if inside else _some_folder()}"
        + (f" (there is also {', '.join(inside[1:5])})" if inside[1:] else ""),
    )


def _some_folder() -> str:
    found = sorted(Path("data").glob("*/manifest.json"))
    return quoted(found[0].parent) if found else "data/NAME, after slm prepare"


# ---- prepared data ------------------------------------------------------------------------


def _describe_folder(folder: Path, verified: bool, seed: int) -> tuple[dict[str, Any], str]:
    manifest = verify(folder) if verified else Manifest.load(folder)
    if not verified:
        check_touched(folder, manifest)
    plain, tokenizer = manifest.to_plain(), manifest.tokenizer
    reading = ", ".join(f"{option} {value}" for option, value in manifest.reading.items() if value)
    lines = [
        f"{folder}" + ("  (verified: everything is as its manifest states)" if verified else ""),
        f"source       {describe_source(manifest.source)}, revision {manifest.revision}",
        f"read with    {reading or 'no option that matters here'}",
        f"tokenizer    {tokenizer['name']}, {tokenizer['n_vocab']:,} tokens, "
        f"SHA-256 {tokenizer['sha256'][:16]}…",
        f"format       version {manifest.format_version}, ids of {manifest.dtype.itemsize} bytes",
    ]
    if difference := difference_from_known(manifest):
        lines.append(f"note         {difference}")
    statistics = {split: count_split(folder, manifest, split) for split in manifest.splits}
    for split, counted in statistics.items():
        facts, lines_of_split = _describe_split(manifest, split, counted)
        plain["splits"][split] |= facts
        lines += ["", *lines_of_split]
    ends = statistics["train"].ends
    stories = examples(folder, manifest, "train", ends, seed, 3)
    plain["examples"] = stories
    for number, story in enumerate(stories, 1):
        lines += [
            "",
            f"--- story {number} of {len(stories)}, drawn with --seed {seed}",
            printable(story),
        ]
    return plain, "\n".join(lines)


def _describe_split(
    manifest: Manifest, split: str, counted: SplitStatistics
) -> tuple[dict[str, Any], list[str]]:
    facts, n_vocab = manifest.splits[split], manifest.tokenizer["n_vocab"]
    bars = histogram(counted.lengths)
    covering = {share: counted.most_frequent_for(share) for share in (0.9, 0.99, 0.999)}
    fitting = {context: counted.fitting(context) for context in _CONTEXTS}
    lines = [
        f"{split:<13}{facts.stories:,} stories, {facts.tokens:,} tokens, {facts.bytes:,} bytes of "
        f"text: {facts.bytes / facts.tokens:.2f} bytes per token",
        f"  SHA-256    {facts.sha256}",
        f"  cleaning   {facts.repaired:,} repaired, {facts.empty_dropped:,} empty and "
        f"{facts.duplicates_dropped:,} repeated left out",
        f"  vocabulary {counted.ids_used:,} of {n_vocab:,} tokens occur "
        f"({counted.ids_used / n_vocab:.1%}); the most frequent "
        + ", ".join(f"{count:,} make {share:.1%}" for share, count in covering.items()),
        "  contexts   that hold a whole story: "
        + ", ".join(f"{context}: {share:.1%}" for context, share in fitting.items()),
        "  length     of stories in tokens, end-of-text included",
    ]
    highest = max(count for _, _, count in bars)
    for start, stop, count in bars:
        bar = "#" * round(_BAR * count / highest) or ("." if count else "")
        share = count / facts.stories
        lines.append(f"  {start:>6}-{stop:<6} {bar:<{_BAR}} {count:>11,} {share:>6.1%}")
    figures = {
        "bytes_per_token": facts.bytes / facts.tokens,
        "vocabulary_used": counted.ids_used,
        "most_frequent_covering": {str(share): count for share, count in covering.items()},
        "stories_within_context": {str(context): share for context, share in fitting.items()},
        "length_histogram": [list(bar) for bar in bars],
    }
    return figures, lines


# ---- checkpoints --------------------------------------------------------------------------


def _describe_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    from slm.model import GPT
    from slm.training.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    checkpoint.check_file()
    tokenizer = checkpoint.make_tokenizer()
    entry = checkpoint.entry
    data = entry["data"] or {}
    gpt = checkpoint.model_options["gpt"]
    facts = {
        "step": checkpoint.step,
        "model": gpt,
        "tokenizer": tokenizer.identity(),
        "data": data,
        "training": entry["training"],
    }
    lines = [
        str(path),
        f"trained      {checkpoint.step:,} optimizer steps",
        f"model        {GPT(checkpoint.gpt).parameter_counts()}",
        f"             {', '.join(f'{name} {value}' for name, value in gpt.items())}",
        f"tokenizer    {tokenizer.name}, {tokenizer.n_vocab:,} tokens, "
        f"SHA-256 {tokenizer.sha256[:16]}…",
        f"data         {describe_source(data['source']) if data else 'unknown'}",
        f"training     {', '.join(f'{name} {value}' for name, value in entry['training'].items())}",
    ]
    return facts, "\n".join(lines)
