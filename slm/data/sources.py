"""Where stories come from: the hub, files, or the built-in generator."""

import hashlib
import re
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from slm.data import hub
from slm.data.builtin import stories as builtin_stories
from slm.data.readers import SUFFIXES, read_stories
from slm.errors import UserError

BUILTIN_STORIES = 40_000


class Source(Protocol):
    """A set of stories in two splits."""

    @property
    def spec(self) -> str:
        """What names the source unmistakably, stored in manifests."""

    @property
    def name(self) -> str:
        """A short name, used for the folder of the prepared data."""

    def revision(self) -> str:
        """Fingerprint of the present contents.

        Raises:
            UserError: The source does not exist.
        """

    def unchanged_since(self, revision: str) -> bool:
        """Whether data prepared from `revision` still stand for this source, as far as known."""

    def stories(self, split: str) -> Iterator[str]:
        """The texts of `train` or `validation`, unstripped; some may be empty.

        Raises:
            UserError: The source cannot be read.
        """


def open_source(spec: str, text_column: str, validation_share: float) -> Source:
    """Understands a value of `--data.source`; opens nothing yet.

    Args:
        spec: `hub:OWNER/NAME`, `builtin`, or the path of a file or folder.
        text_column: Column of the stories in `.jsonl`, `.csv`, `.parquet` and hub data.
        validation_share: Part of the stories to hold out where the source has no validation
            split, from 0 to 1.
    """
    if spec == "builtin":
        return BuiltinSource(validation_share)
    if spec.startswith("hub:"):
        return HubSource(spec.removeprefix("hub:"), text_column, validation_share)
    return FileSource(Path(spec).expanduser().resolve(), text_column, validation_share)


def held_out(story: str, share: float) -> bool:
    """Whether a story belongs to the validation split: decided by its stripped text alone."""
    return zlib.crc32(story.strip().encode("utf-8", "surrogatepass")) < share * 2**32


class BuiltinSource:
    """Stories written by this project's own seeded generator; needs nothing."""

    spec = "builtin"
    name = "builtin"

    def __init__(self, validation_share: float, count: int = BUILTIN_STORIES) -> None:
        self.validation_share = validation_share
        self.count = count

    def revision(self) -> str:
        """Number of stories and a hash of the first thousand."""
        digest = hashlib.sha256("\0".join(builtin_stories(min(1000, self.count))).encode())
        return f"{self.count} stories, {self.validation_share}, {digest.hexdigest()[:16]}"

    def unchanged_since(self, revision: str) -> bool:
        """Whether the generator still tells the same stories."""
        return self.revision() == revision

    def stories(self, split: str) -> Iterator[str]:
        """See `Source`."""
        for story in builtin_stories(self.count):
            if held_out(story, self.validation_share) == (split == "validation"):
                yield story


class FileSource:
    """A file, or a folder of files.

    In a folder, files with the word `validation`, `valid`, `val` or `dev` in their name, or in
    that of a folder between, are the validation split; those with `test`, `readme` or `license`
    are left alone; all others are training data. Where there is no validation file, a share of
    the stories is held out.
    """

    def __init__(self, path: Path, text_column: str, validation_share: float) -> None:
        self.path = path
        self.text_column = text_column
        self.validation_share = validation_share
        self.spec = str(path)
        self.name = path.stem if path.suffix in SUFFIXES else path.name

    def _files(self) -> dict[str, list[Path]]:
        if self.path.is_file():
            return {"train": [self.path], "validation": []}
        if not self.path.is_dir():
            raise UserError(
                f"--data.source {self.path} does not exist",
                "a file, a folder, hub:OWNER/NAME or builtin",
                "check the path, or try --data.source builtin",
            )
        found = sorted(path for path in self.path.rglob("*") if path.suffix in SUFFIXES)
        files: dict[str, list[Path]] = {"train": [], "validation": []}
        for path in found:
            words = set(re.split(r"[^a-z]+", str(path.relative_to(self.path)).lower()))
            if words & {"validation", "valid", "val", "dev"}:
                files["validation"].append(path)
            elif not words & {"test", "readme", "license"}:
                files["train"].append(path)
        if not files["train"]:
            raise UserError(
                f"the folder {self.path} holds no training file among {len(found)} readable ones",
                f"files ending in {', '.join(SUFFIXES)}, such as train.txt and validation.txt",
                "name the folder that holds the stories",
            )
        return files

    def revision(self) -> str:
        """Hash over each file's name, size, and first and last 64 KiB."""
        digest = hashlib.sha256(f"{self.text_column} {self.validation_share}".encode())
        for split, paths in self._files().items():
            for path in paths:
                size = path.stat().st_size
                digest.update(f"{split} {path.name} {size}\n".encode())
                with path.open("rb") as file:
                    digest.update(file.read(1 << 16))
                    file.seek(max(0, size - (1 << 16)))
                    digest.update(file.read())
        return digest.hexdigest()[:16]

    def unchanged_since(self, revision: str) -> bool:
        """Whether the files are as they were; true as well where they have been moved away."""
        return not self.path.exists() or self.revision() == revision

    def stories(self, split: str) -> Iterator[str]:
        """See `Source`."""
        files = self._files()
        if files["validation"]:
            for path in files[split]:
                yield from read_stories(path, self.text_column)
            return
        for path in files["train"]:
            for story in read_stories(path, self.text_column):
                if held_out(story, self.validation_share) == (split == "validation"):
                    yield story


class HubSource:
    """A data set of the Hugging Face hub, read through the library `datasets`.

    A local folder in the layout of a hub repository works as well, with the same call.
    """

    def __init__(self, repository: str, text_column: str, validation_share: float) -> None:
        local = Path(repository).expanduser()
        self.repository = str(local.resolve()) if local.is_dir() else repository
        self.text_column = text_column
        self.validation_share = validation_share
        self.spec = f"hub:{self.repository}"
        self.name = self.repository.rstrip("/").rpartition("/")[2]

    @property
    def _reading(self) -> str:
        return f"column {self.text_column}, share {self.validation_share}"

    @cached_property
    def _splits(self) -> dict[str, Any]:
        return hub.load(self.repository)

    def revision(self) -> str:
        """How the data set is read, and the commit that was downloaded."""
        return f"{self._reading}, {hub.revision(next(iter(self._splits.values())))}"

    def unchanged_since(self, revision: str) -> bool:
        """Whether it would be read in the same way.

        The hub is not asked for a newer commit: prepared data must do without a network.
        """
        return revision.startswith(f"{self._reading}, ")

    def stories(self, split: str) -> Iterator[str]:
        """See `Source`."""
        if "train" not in self._splits:
            raise UserError(
                f"{self.spec} has the splits {', '.join(self._splits)}",
                "a split named train",
                "choose another data set",
            )
        if "validation" in self._splits:
            yield from hub.texts(self._splits[split], self.text_column, self.spec)
            return
        for story in hub.texts(self._splits["train"], self.text_column, self.spec):
            if held_out(story, self.validation_share) == (split == "validation"):
                yield story
