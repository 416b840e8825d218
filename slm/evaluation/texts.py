"""Held-out stories and training text, in a model's vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.batches import ConsecutiveWindows, TokenFile
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared, find_folder
from slm.data.tokenizer import Tokenizer
from slm.evaluation.generated import frequent_words
from slm.evaluation.overlap import Ids
from slm.training.checkpoint import Checkpoint

_BLOCK = 1 << 22
_SAMPLE = 2_000_000


@dataclass(frozen=True)
class Texts:
    """Prepared data in a model's vocabulary."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer

    def held_out(self, count: int) -> list[str]:
        """The first stories of the validation split."""
        ids = self._ids("validation")
        found: list[str] = []
        start = 0
        for end in np.flatnonzero(ids == self.tokenizer.end_of_text):
            found.append(self.tokenizer.decode(ids[start:end]))
            start = int(end) + 1
            if len(found) == count:
                break
        return found

    def windows(self, block_size: int) -> ConsecutiveWindows:
        """The validation split, to predict each token once."""
        file = TokenFile(Manifest.path(self.folder, "validation"), self.manifest.dtype)
        return ConsecutiveWindows(file, block_size, 4)

    def training(self) -> Iterator[Ids]:
        """The training split's ids, in blocks that overlap by more than a story's tokens."""
        ids = self._ids("train")
        for start in range(0, len(ids), _BLOCK):
            yield ids[start : start + _BLOCK + 1024].astype(np.int64)

    def frequent_words(self) -> list[str]:
        """The words of the training split's first 2 million tokens, the most frequent first."""
        ids = self._ids("train")[:_SAMPLE]
        return frequent_words([self.tokenizer.decode(ids)])

    def _ids(self, split: str) -> Any:
        # Mapped each time: a long-lived mapping grows in memory.
        return np.memmap(Manifest.path(self.folder, split), self.manifest.dtype, mode="r")


def texts_of(
    checkpoint: Checkpoint,
    source: str | None = None,
    root: str | None = None,
    prepare: bool = True,
) -> Texts:
    """Data in a checkpoint's vocabulary: its own, or of another source or root; found or prepared.

    Raises:
        UserError: There are no such data, or they are in another vocabulary.
    """
    corpus = checkpoint.corpus(source, root)
    folder = ensure_prepared(corpus) if prepare else find_folder(corpus)
    manifest = Manifest.load(folder)
    checkpoint.check_tokenizer(manifest.tokenizer)
    return Texts(folder, manifest, checkpoint.make_tokenizer())
