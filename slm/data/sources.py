"""Where stories come from: the hub, files, or the built-in generator."""

import glob
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from slm.data import hub
from slm.data.builtin import stories as builtin_stories
from slm.data.columns import StoryText
from slm.data.readers import SUFFIXES, cut_file, kind_of
from slm.errors import UserError

BUILTIN_STORIES = 40_000


class Piece(Protocol):
    """A part of a source that is read on its own, perhaps by another process."""

    @property
    def split(self) -> str | None:
        """`train` or `validation`; None where each story's own text decides."""

    @property
    def label(self) -> str:
        """Identity of the piece: another one when its contents may have changed."""

    @property
    def weight(self) -> int:
        """Roughly how many bytes it holds."""

    @property
    def has_columns(self) -> bool:
        """Whether the stories are taken out of rows."""

    def stories(self) -> Iterator[str]:
        """The texts; some may be empty.

        Raises:
            UserError: They cannot be read.
        """


class Source(Protocol):
    """A set of stories."""

    @property
    def spec(self) -> str | list[str]:
        """What names the source unmistakably, stored in manifests."""

    @property
    def name(self) -> str:
        """A short name, used for the folder of the prepared data."""

    def revision(self) -> str:
        """Fingerprint of the present contents, without spaces.

        Raises:
            UserError: The source does not exist.
        """

    def unchanged_since(self, revision: str) -> bool:
        """Whether data prepared from `revision` still stand for this source, as far as known."""

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """The whole source in pieces of about that size, in a fixed order.

        Raises:
            UserError: The source cannot be read.
        """


def open_source(spec: str | list[str], text_column: str = "text") -> Source:
    """Understands a value of `--data.source`; opens nothing yet.

    Args:
        spec: `hub:OWNER/NAME`, `builtin`, the path of a file or folder, a pattern with `*`, or
            a list of these.
        text_column: The stories' column, or a template, where there are columns.

    Raises:
        UserError: The list is empty, or the template malformed.
    """
    text = StoryText(text_column)
    if isinstance(spec, list):
        if not spec:
            raise UserError("--data.source []", "at least one source", "--data.source builtin")
        sources = [open_source(one, text_column) for one in spec]
        return sources[0] if len(sources) == 1 else JoinedSource(sources)
    if spec == "builtin":
        return BuiltinSource()
    if spec.startswith("hub:"):
        return HubSource(spec.removeprefix("hub:"), text)
    return FileSource(Path(spec).expanduser(), text)


def in_words(spec: str | list[str]) -> str:
    """A source's spec in a line."""
    return spec if isinstance(spec, str) else " + ".join(spec)


def held_out(story: str, share: float) -> bool:
    """Whether a story belongs to the validation split: decided by its stripped text alone."""
    return zlib.crc32(story.strip().encode("utf-8", "surrogatepass")) < share * 2**32


def _tidy(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "stories"


@dataclass(frozen=True)
class BuiltinPiece:
    """All built-in stories: the generator cannot begin in the middle."""

    count: int
    label: str
    split: str | None = None
    has_columns: bool = False

    @property
    def weight(self) -> int:
        """About 800 bytes a story."""
        return 800 * self.count

    def stories(self) -> Iterator[str]:
        """See `Piece`."""
        return builtin_stories(self.count)


class BuiltinSource:
    """Stories written by this project's own seeded generator; needs nothing."""

    spec = "builtin"
    name = "builtin"

    def __init__(self, count: int = BUILTIN_STORIES) -> None:
        self.count = count

    def revision(self) -> str:
        """Number of stories and a hash of the first thousand."""
        digest = hashlib.sha256("\0".join(builtin_stories(min(1000, self.count))).encode())
        return f"{self.count}-stories-{digest.hexdigest()[:16]}"

    def unchanged_since(self, revision: str) -> bool:
        """Whether the generator still tells the same stories."""
        return self.revision() == revision

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """One, whatever the size."""
        return [BuiltinPiece(self.count, self.revision())]


class FileSource:
    """A file, a folder of files, or a pattern that files match.

    Among several files, those with the word `validation`, `valid`, `val` or `dev` in their name,
    or in that of a folder between, are the validation split; those with `test`, `readme` or
    `license` are left alone; all others are training data.
    """

    def __init__(self, path: Path, text: StoryText) -> None:
        path = path.absolute()
        self.is_pattern = glob.has_magic(str(path)) and not path.exists()
        self.path = path if self.is_pattern else path.resolve()
        self.text = text
        self.spec = str(self.path)
        self.name = self._name()

    def _name(self) -> str:
        if not self.is_pattern:
            suffix = next((s for s in SUFFIXES if self.path.name.lower().endswith(s)), "")
            return _tidy(self.path.name[: len(self.path.name) - len(suffix)])
        words = [word for word in self.path.parts if not glob.has_magic(word)]
        return _tidy(words[-1])

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if self.path.is_file():
            return {"train": [self.path], "validation": []}
        if self.is_pattern:
            matches = (Path(name) for name in glob.glob(str(self.path), recursive=True))
            # A star does not say what the folders are called; they tell nothing of the split.
            fixed = self.path.parts.index(next(filter(glob.has_magic, self.path.parts)))
            base = Path(*self.path.parts[:fixed])
        elif self.path.is_dir():
            matches, base = iter(self.path.rglob("*")), self.path
        else:
            raise UserError(
                f"--data.source {self.path} does not exist",
                "a file, a folder, a pattern, hub:OWNER/NAME or builtin",
                "check the path, or try --data.source builtin",
            )
        found = sorted(path for path in matches if path.is_file() and kind_of(path))
        files: dict[str, list[Path]] = {"train": [], "validation": []}
        for path in found:
            words = set(re.split(r"[^a-z]+", str(path.relative_to(base)).lower()))
            if words & {"validation", "valid", "val", "dev"}:
                files["validation"].append(path)
            elif not words & {"test", "readme", "license"}:
                files["train"].append(path)
        if not files["train"]:
            raise UserError(
                f"{self.path} gives no training file among {len(found)} readable ones",
                f"files ending in {', '.join(SUFFIXES)}, such as train.txt and validation.txt",
                "name the folder, or the pattern, of the files that hold the stories",
            )
        return files

    def revision(self) -> str:
        """Hash over each file's name, size, and first and last 64 KiB."""
        digest = hashlib.sha256()
        try:
            for split, paths in self._files.items():
                for path in paths:
                    size = path.stat().st_size
                    digest.update(f"{split} {path.name} {size}\n".encode())
                    with path.open("rb") as file:
                        digest.update(file.read(1 << 16))
                        file.seek(max(0, size - (1 << 16)))
                        digest.update(file.read())
        except OSError as error:
            raise UserError(
                f"{error.filename or self.path} cannot be read: {error.strerror or error}",
                "readable files",
                "check their permissions",
            ) from error
        return digest.hexdigest()[:16]

    def unchanged_since(self, revision: str) -> bool:
        """Whether the files are as they were; true as well where they have been moved away."""
        if self.is_pattern:
            gone = not glob.glob(str(self.path), recursive=True)
        else:
            gone = not self.path.exists()
        return gone or self.revision() == revision

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """Each file's pieces: training files, then validation files."""
        pieces: list[Piece] = []
        for split, paths in self._files.items():
            for path in paths:
                known = split if self._files["validation"] else None
                pieces += cut_file(path, self.text, known, piece_bytes)
        return _grouped(pieces, piece_bytes)


@dataclass(frozen=True)
class Group:
    """Small pieces of one split, read one after the other."""

    pieces: tuple[Piece, ...]

    @property
    def split(self) -> str | None:
        """Theirs."""
        return self.pieces[0].split

    @property
    def label(self) -> str:
        """All of theirs."""
        return "\n".join(piece.label for piece in self.pieces)

    @property
    def weight(self) -> int:
        """Their sum."""
        return sum(piece.weight for piece in self.pieces)

    @property
    def has_columns(self) -> bool:
        """Whether any of them has."""
        return any(piece.has_columns for piece in self.pieces)

    def stories(self) -> Iterator[str]:
        """See `Piece`."""
        for piece in self.pieces:
            yield from piece.stories()


def _grouped(pieces: list[Piece], piece_bytes: int) -> list[Piece]:
    """Puts neighbours of one split together while they make no more than `piece_bytes`."""
    groups: list[Piece] = []
    members: list[Piece] = []
    weight = 0
    for piece in [*pieces, None]:
        full = piece is None or weight + piece.weight > piece_bytes
        if members and (full or piece is None or piece.split != members[0].split):
            groups.append(members[0] if len(members) == 1 else Group(tuple(members)))
            members, weight = [], 0
        if piece is not None:
            members.append(piece)
            weight += piece.weight
    return groups


@dataclass(frozen=True)
class HubPiece:
    """Some rows of a split of a hub data set."""

    rows: Any
    """A memory-mapped `datasets.Dataset`, which is sent to other processes as its file names."""
    start: int
    stop: int
    text: StoryText
    split: str | None
    weight: int
    label: str
    has_columns: bool = True

    def stories(self) -> Iterator[str]:
        """See `Piece`."""
        columns = list(self.text.columns)
        rows = self.rows.select_columns(columns).select(range(self.start, self.stop))
        for block in rows.iter(batch_size=128):
            for values in zip(*(block[column] for column in columns), strict=True):
                yield self.text.of(dict(zip(columns, values, strict=True)), "the hub's data")


class HubSource:
    """A data set of the Hugging Face hub, read through the library `datasets`.

    A local folder in the layout of a hub repository works as well, with the same call.
    """

    def __init__(self, repository: str, text: StoryText) -> None:
        local = Path(repository).expanduser()
        self.repository = str(local.resolve()) if local.is_dir() else repository
        self.text = text
        self.spec = f"hub:{self.repository}"
        self.name = _tidy(self.repository.rstrip("/").rpartition("/")[2])

    @cached_property
    def _splits(self) -> dict[str, Any]:
        return hub.load(self.repository)

    def revision(self) -> str:
        """The commit that was downloaded."""
        return hub.revision(next(iter(self._splits.values())))

    def unchanged_since(self, revision: str) -> bool:
        """True: the hub is not asked. Prepared data must do without a network."""
        return True

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """Ranges of rows: of the training split, then of the validation split if there is one."""
        if "train" not in self._splits:
            raise UserError(
                f"{self.spec} has the splits {', '.join(self._splits)}",
                "a split named train",
                "choose another data set",
            )
        splits = [split for split in ("train", "validation") if split in self._splits]
        pieces: list[Piece] = []
        for split in splits:
            rows = self._splits[split]
            self.text.check(rows.column_names, self.spec)
            size = rows.data.nbytes
            step = max(1, len(rows) * piece_bytes // max(1, size))
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                label = f"{self.spec} {split} {start}-{stop} {hub.revision(rows)}"
                known = split if len(splits) == 2 else None
                weight = size * (stop - start) // len(rows)
                pieces.append(HubPiece(rows, start, stop, self.text, known, weight, label))
        return pieces


class JoinedSource:
    """Several sources, one after the other; each is split in its own way."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self.spec = [in_words(source.spec) for source in sources]
        names = list(dict.fromkeys(source.name for source in sources))
        self.name = "+".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2}-more"])

    def revision(self) -> str:
        """All of theirs, none of which holds a space."""
        return " ".join(source.revision() or "-" for source in self.sources)

    def unchanged_since(self, revision: str) -> bool:
        """Whether none of them has changed."""
        parts = revision.split(" ")
        return len(parts) == len(self.sources) and all(
            source.unchanged_since(part) for source, part in zip(self.sources, parts, strict=True)
        )

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """Theirs."""
        return [piece for source in self.sources for piece in source.pieces(piece_bytes)]
