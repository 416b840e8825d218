"""The verb `prepare`: the data options of `fit`, without a model or a Trainer."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import yaml

from slm.commands.configs import expand_configs
from slm.commands.parsing import os_errors_explained, quick_parser
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared
from slm.errors import UserError

# Options of the section `data` in a config that decide nothing here.
_SECTIONS = {
    "data", "model", "trainer", "seed_everything", "val_interval", "save_interval", "ckpt_path",
    "budget", "report", "check_device", "on_save_error",
}  # fmt: skip
_OTHER = {"batch_size", "eval_batch_size", "num_workers", "block_size", "seed", "order"}


@os_errors_explained()
def run_prepare(words: Sequence[str]) -> int:
    """Prepares the data and prints what came out.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    parser = quick_parser(
        "prepare",
        "slm prepare [--config FILE] [--data.option value ...]",
    )
    parser.add_argument(
        "--config",
        type=str | None,
        default=None,
        help="A YAML file of options, of which only the section `data` is used, or the name of "
        "one that comes with slm, such as small.",
    )
    parser.add_class_arguments(Corpus, "data")
    corpus = parser.instantiate_classes(parser.parse_args(expand_configs(words, _options))).data
    folder = ensure_prepared(corpus)
    print(describe(folder, Manifest.load(folder)))
    return 0


def describe(folder: Path, manifest: Manifest) -> str:
    """The sizes of the splits, and what cleaning did, as lines."""
    lines = [str(folder)]
    for split, facts in manifest.splits.items():
        lines.append(
            f"{split:<11}{facts.stories:>12,} stories {facts.tokens:>14,} tokens "
            f"{facts.bytes:>15,} bytes  {facts.bytes / facts.tokens:.2f} bytes per token"
        )
        changes = {
            "repaired": facts.repaired,
            "empty left out": facts.empty_dropped,
            "repetitions left out": facts.duplicates_dropped,
        }
        chosen = ("repair_mojibake", "drop_empty", "drop_duplicates")
        said = [
            f"{count:,} {what}"
            for option, (what, count) in zip(chosen, changes.items(), strict=True)
            if manifest.reading[option]
        ]
        if said:
            lines.append(f"{'':<11}{', '.join(said)}")
    return "\n".join(lines)


def _options(path: Path) -> list[str]:
    """The section `data` of a config file as words of a command line.

    Raises:
        UserError: The file cannot be read or understood.
    """
    known = {field.name for field in fields(Corpus)}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if unknown := set(config or {}) - _SECTIONS:
            raise ValueError(f"there is no section {', '.join(map(str, unknown))}")
        data = dict((config or {}).get("data") or {})
        clean = dict(data.pop("clean", None) or {})
        options = data | {f"clean.{name}": value for name, value in clean.items()}
        return [
            f"--data.{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in options.items()
            if name in known or name not in _OTHER
        ]
    except (OSError, ValueError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise UserError(
            f"--config {path} cannot be understood: {' '.join(str(error).split())}",
            "a YAML file with a section `data`",
            "repair the file, or start from configs/small.yaml",
        ) from error
