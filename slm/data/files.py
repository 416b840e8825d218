"""Stories from files: one file, a folder, or the files that match a pattern."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slm.data.columns import StoryText
from slm.data.readers import SUFFIXES, cut_file, kind_of
from slm.data.source import Piece, tidy
from slm.errors import UserError


class FileSource:
    """A file, a folder of files, or a pattern that files match.

    Of several files, those with `validation`, `valid`, `val` or `dev` in their name, or in the name
    of a subfolder, are the validation split; those with `test`, `readme` or `license` are ignored;
    all others are training data.
    """

    def __init__(self, path: Path, text: StoryText) -> None:
        path = path.absolute()
        try:
            self.is_pattern = glob.has_magic(str(path)) and not path.exists()
            self.path = path if self.is_pattern else path.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise UserError.unreadable(path, error) from error
        self.text = text
        self.left_out: list[str] = []
        self.spec = str(self.path)
        if self.is_pattern:
            self.name = tidy([part for part in self.path.parts if not glob.has_magic(part)][-1])
        else:
            suffix = next((s for s in SUFFIXES if self.path.name.lower().endswith(s)), "")
            self.name = tidy(self.path.name[: len(self.path.name) - len(suffix)])

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if self.path.is_file():
            return {"train": [self.path], "validation": []}
        if self.is_pattern:
            matches = (Path(name) for name in glob.glob(str(self.path), recursive=True))
            # Folders that a star matches do not determine the split.
            fixed = self.path.parts.index(next(filter(glob.has_magic, self.path.parts)))
            base = Path(*self.path.parts[:fixed])
        elif self.path.is_dir():
            matches, base = iter(self.path.rglob("*")), self.path
        else:
            raise UserError(
                f"--data.source {self.path} does not exist",
                "a file, a folder, a pattern, hub:OWNER/NAME or builtin",
                "name the present path by --data.source, or try --data.source builtin",
            )
        files: dict[str, list[Path]] = {"train": [], "validation": []}
        names = sorted(path.relative_to(base) for path in matches if path.is_file())
        # Hidden files are copies, caches and environments.
        names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        # Beside files of other kinds, .json files rarely contain stories.
        json_too = self.is_pattern or not any(n.name.lower().endswith(SUFFIXES) for n in names)
        for name in names:
            path = base / name
            parts = set(re.split(r"[^a-z]+", str(name).lower()))
            known = path.name.lower().endswith(SUFFIXES) or (json_too and kind_of(path))
            if not known or parts & {"test", "readme", "license"}:
                self.left_out.append(str(name))
            else:
                held_out = parts & {"validation", "valid", "val", "dev"}
                files["validation" if held_out else "train"].append(path)
        if not files["train"]:
            raise UserError(
                f"{self.path} has no training file; {len(files['validation'])} for validation, "
                f"left out: {_some(self.left_out)}",
                f"files ending in {', '.join(SUFFIXES)}, such as train.txt and validation.txt",
                "name the folder, the pattern or the file that contains the stories",
            )
        return files

    def describe(self) -> str:
        if self.path.is_file():
            return ""
        train, validation = (len(paths) for paths in self._files.values())
        share = "" if validation else " (a share of the stories is held out)"
        split = f"{train} for training, {validation} for validation{share}"
        return f"{split}, left out: {_some(self.left_out)}"

    def revision(self) -> str:
        """Hash over each file's name, size, and first and last 64 KiB."""
        digest = hashlib.sha256()
        try:
            for split, paths in self._files.items():
                for path in paths:
                    size = path.stat().st_size
                    digest.update(os.fsencode(f"{split} {path.name} {size}\n"))
                    with path.open("rb") as file:
                        digest.update(file.read(1 << 16))
                        file.seek(max(0, size - (1 << 16)))
                        digest.update(file.read())
        except OSError as error:
            raise UserError.unreadable(error.filename or self.path, error) from error
        return digest.hexdigest()[:16]

    def exists(self) -> bool:
        if self.is_pattern:
            return bool(glob.glob(str(self.path), recursive=True))
        return self.path.exists()

    def unchanged_since(self, revision: str) -> bool:
        """Whether the files are unchanged; also true if they no longer exist."""
        return not self.exists() or self.revision() == revision

    def pieces(self, piece_bytes: int) -> list[Piece]:
        pieces: list[Piece] = []
        for split, paths in self._files.items():
            for path in paths:
                known = split if self._files["validation"] else None
                pieces += cut_file(path, self.text, known, piece_bytes)
        return _group(pieces, piece_bytes)


def _some(names: list[str]) -> str:
    """The first few names of a list."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more


@dataclass(frozen=True)
class Group:
    """Small pieces of one split, read one after the other."""

    pieces: tuple[Piece, ...]

    @property
    def split(self) -> str | None:
        return self.pieces[0].split

    @property
    def label(self) -> str:
        return "\n".join(piece.label for piece in self.pieces)

    @property
    def weight(self) -> int:
        return sum(piece.weight for piece in self.pieces)

    @property
    def has_columns(self) -> bool:
        return any(piece.has_columns for piece in self.pieces)

    def stories(self) -> Iterator[str]:
        for piece in self.pieces:
            yield from piece.stories()


def _group(pieces: list[Piece], piece_bytes: int) -> list[Piece]:
    """Joins neighbours of one split as long as their sum is at most `piece_bytes`."""
    groups: list[list[Piece]] = []
    weight = 0
    for piece in pieces:
        weight += piece.weight
        if not groups or weight > piece_bytes or piece.split != groups[-1][0].split:
            groups.append([])
            weight = piece.weight
        groups[-1].append(piece)
    return [group[0] if len(group) == 1 else Group(tuple(group)) for group in groups]
