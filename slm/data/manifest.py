"""What a prepared data folder says of itself."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.tokenizer import Tokenizer
from slm.errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")


def id_dtype(n_vocab: int) -> np.dtype[Any]:
    """Type of the ids in token files: little-endian, 16 bits while they suffice."""
    return np.dtype("<u2" if n_vocab <= 65536 else "<u4")


@dataclass(frozen=True)
class SplitFacts:
    """Size and identity of one split."""

    stories: int
    tokens: int
    """Token ids in the file, one end-of-text per story included."""
    bytes: int
    """UTF-8 bytes of the stories' text; end-of-text counts nothing."""
    sha256: str
    """SHA-256 of the `.bin` file."""


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`. Its presence says that the folder is complete."""

    source: str
    """Where the stories came from, as given to `--data.source`, paths made absolute."""
    revision: str
    """Fingerprint of the source: changes when the source does."""
    tokenizer: dict[str, Any]
    """`Tokenizer.to_plain()`."""
    splits: dict[str, SplitFacts]
    """Facts of `train` and `validation`."""
    format_version: int = FORMAT_VERSION

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the ids in the files."""
        return id_dtype(self.tokenizer["n_vocab"])

    def to_plain(self) -> dict[str, Any]:
        """The manifest in plain types."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, the last act of a preparation: all of it or nothing."""
        temporary = folder / f"manifest.json.tmp-{os.getpid()}"
        temporary.write_text(json.dumps(self.to_plain(), indent=1), encoding="utf-8")
        temporary.replace(folder / "manifest.json")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads `manifest.json` and checks that the token files have the size it states.

        Raises:
            UserError: There is no manifest, it cannot be read, it is of another format version,
                or a file is missing or has another size.
        """
        remedy = f"remove the folder {folder} and run the command again; it prepares the data anew"
        try:
            plain = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            version = plain["format_version"]
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{folder} was prepared in format version {version}",
                    f"format version {FORMAT_VERSION}",
                    remedy,
                )
            splits = {name: SplitFacts(**facts) for name, facts in plain.pop("splits").items()}
            manifest = cls(splits=splits, **plain)
            sizes = {name: manifest.path(folder, name).stat().st_size for name in SPLITS}
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} does not exist", "prepared data", remedy) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{folder / 'manifest.json'} cannot be understood: {error!r}",
                "the file that preparation writes",
                remedy,
            ) from error
        for name, size in sizes.items():
            expected = manifest.splits[name].tokens * manifest.dtype.itemsize
            if size != expected:
                raise UserError(
                    f"{manifest.path(folder, name)} has {size:,} bytes",
                    f"{expected:,} bytes, as its manifest states",
                    remedy,
                )
        return manifest

    @staticmethod
    def path(folder: Path, split: str) -> Path:
        """The token file of a split."""
        return folder / f"{split}.bin"

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer the data were encoded with."""
        return Tokenizer.from_plain(self.tokenizer)
