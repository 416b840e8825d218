"""The verb `prepare`: the data options of `fit`, without a model or a Trainer."""

from dataclasses import dataclass

from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import FIT_SECTIONS, parse
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared

_BATCHES = ("batch_size", "eval_batch_size", "num_workers", "block_size", "seed", "order")
_IGNORED = FIT_SECTIONS - {"data"} | {f"data.{name}" for name in _BATCHES}


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare`."""

    data: Corpus
    config: str | None = None
    """A YAML file of options, of which only the section `data` is used, or the name of one that
    comes with slm, such as small."""


def prepare(arguments: Arguments) -> int:
    """Prepares the data and prints their sizes."""
    usage = "slm prepare [--config FILE] [--data.option value ...]"
    options = parse("prepare", PrepareOptions, arguments, usage, _IGNORED)
    folder = ensure_prepared(options.data)
    manifest = Manifest.load(folder)
    print(folder)
    for split, facts in manifest.splits.items():
        print(
            f"{split:<11}{facts.stories:>12,} stories {facts.tokens:>14,} tokens "
            f"{facts.bytes:>15,} bytes  {facts.bytes / facts.tokens:.2f} bytes per token"
        )
        changes = [
            f"{count:,} {what}"
            for option, count, what in (
                ("repair_mojibake", facts.repaired, "repaired"),
                ("drop_empty", facts.empty_dropped, "empty left out"),
                ("drop_duplicates", facts.duplicates_dropped, "repetitions left out"),
            )
            if manifest.reading[option]
        ]
        if changes:
            print(f"{'':<11}{', '.join(changes)}")
    return 0
