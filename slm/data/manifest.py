"""The manifest of a folder of prepared data."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.data.requests import story_ends
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import parse_json, replacing

FORMAT_VERSION = 2
SPLITS = ("train", "validation")


def id_dtype(n_vocab: int) -> np.dtype[Any]:
    """The type of ids in token files: little-endian, 16 bits if they suffice."""
    return np.dtype("<u2" if n_vocab <= 65536 else "<u4")


def damaged(folder: Path, found: str, expected: str) -> UserError:
    """The error for a damaged folder of prepared data."""
    return UserError(found, expected, _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and repeat the command; it prepares the data again"


def checksum(plain: dict[str, Any]) -> str:
    """SHA-256 of a manifest in plain types, independent of the order of the keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SplitFacts:
    """Size and identity of one split."""

    stories: int
    tokens: int
    """Token ids in the file, including one end-of-text per story."""
    bytes: int
    """UTF-8 bytes of the stories' text, without end-of-text."""
    sha256: str
    """SHA-256 of the `.bin` file."""
    empty_dropped: int = 0
    """Stories of nothing but white space that cleaning left out."""
    duplicates_dropped: int = 0
    """Repetitions that cleaning left out."""
    repaired: int = 0
    """Stories in which cleaning repaired mojibake."""


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`. A folder with a manifest is complete."""

    source: str | list[str]
    """The value of `--data.source`, with absolute paths."""
    revision: str
    """Fingerprint of the source."""
    reading: dict[str, Any]
    """The options that determined the stories' text; None if an option had no effect."""
    tokenizer: dict[str, Any]
    """Name, n_vocab and SHA-256 of the tokenizer, which is stored in `tokenizer.json`."""
    splits: dict[str, SplitFacts]
    format_version: int = FORMAT_VERSION

    @property
    def has_requests(self) -> bool:
        """Whether half of the training stories follow a request (slm/data/requests.py)."""
        return self.reading.get("request") is not None

    def story_ends(self, ends: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        """Of the positions of all end-of-texts of a file, in parts, those that end a story."""
        positions = np.concatenate(ends)
        return story_ends(positions) if self.has_requests else positions

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the ids in the files."""
        return id_dtype(self.tokenizer["n_vocab"])

    def to_plain(self) -> dict[str, Any]:
        """The manifest in plain types."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, the last file of a preparation."""
        plain = self.to_plain()
        plain["checksum"] = checksum(plain)
        with replacing(folder / "manifest.json") as temporary:
            temporary.write_text(json.dumps(plain, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads `manifest.json` and nothing else.

        Raises:
            UserError: It does not exist, is malformed, or has another format version.
        """
        path = folder / "manifest.json"
        try:
            plain = parse_json(path.read_bytes())
            version = plain["format_version"]
            if version != FORMAT_VERSION:
                found = f"{folder} was prepared in format version {version}"
                raise damaged(folder, found, f"format version {FORMAT_VERSION}")
            if plain.pop("checksum", None) != checksum(plain):
                found = f"{path} has been changed: its checksum differs"
                raise damaged(folder, found, "the file that preparation wrote")
            splits = {name: SplitFacts(**facts) for name, facts in plain.pop("splits").items()}
            return cls(splits=splits, **plain)
        except FileNotFoundError as error:
            remedy = "prepare the data: slm prepare --data.source PATH"
            raise UserError(f"{path} does not exist", "prepared data", remedy) from error
        except OSError as error:
            raise UserError.unreadable(path, error) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            found = f"{path} cannot be understood: {error!r}"
            raise damaged(folder, found, "the file that preparation writes") from error

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads `manifest.json`, and checks the tokenizer's hash and the token files' sizes.

        Raises:
            UserError: A file is missing, or is not what the manifest states.
        """
        manifest = cls.read(folder)
        manifest.make_tokenizer(folder)
        for split in SPLITS:
            manifest._check_size(folder, split)
        return manifest

    def _check_size(self, folder: Path, split: str) -> None:
        """Checks the size of a split's file, and that it ends in end-of-text."""
        path, itemsize = self.path(folder, split), self.dtype.itemsize
        expected = self.splits[split].tokens * itemsize
        try:
            size = path.stat().st_size
            if size != expected:
                stated = f"{expected:,} bytes, as its manifest states"
                raise damaged(folder, f"{path} has {size:,} bytes", stated)
            last = np.fromfile(path, self.dtype, offset=max(0, size - itemsize)).tolist()
        except FileNotFoundError as error:
            raise damaged(folder, f"{path} does not exist", "prepared data") from error
        except OSError as error:
            raise UserError.unreadable(path, error) from error
        end_of_text = self.tokenizer["n_vocab"] - 1
        if last != [end_of_text]:
            raise damaged(folder, f"{path} ends in {last}", f"end-of-text, which is {end_of_text}")

    @staticmethod
    def path(folder: Path, split: str) -> Path:
        """The token file of a split."""
        return folder / f"{split}.bin"

    @staticmethod
    def tokenizer_path(folder: Path) -> Path:
        """The file of the tokenizer."""
        return folder / "tokenizer.json"

    def make_tokenizer(self, folder: Path) -> Tokenizer:
        """The tokenizer the data were encoded with, from `tokenizer.json`.

        Raises:
            UserError: The file is missing, damaged, or another tokenizer's.
        """
        path = self.tokenizer_path(folder)
        if not path.exists():
            raise damaged(folder, f"{path} does not exist", "prepared data")
        try:
            tokenizer = Tokenizer.load(path)
        except UserError as error:
            found = error.found if str(path) in error.found else f"{path} contains {error.found}"
            unreadable = isinstance(error.__cause__, OSError)
            remedy = error.remedy if unreadable else _remedy(folder)
            raise UserError(found, error.expected, remedy) from error
        if tokenizer.identity() != self.tokenizer:
            raise UserError(
                f"{path} contains a {tokenizer.name} vocabulary of {tokenizer.n_vocab:,} tokens, "
                f"SHA-256 {tokenizer.sha256[:12]}…",
                f"the one that the data were encoded with: {self.tokenizer['name']}, "
                f"{self.tokenizer['n_vocab']:,} tokens, SHA-256 {self.tokenizer['sha256'][:12]}…",
                f"put the right file back; or {_remedy(folder)}",
            )
        return tokenizer
