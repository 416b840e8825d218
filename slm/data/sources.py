"""Opens the source that `--data.source` describes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slm.data.builtin import stories as builtin_stories
from slm.data.columns import StoryText
from slm.data.files import FileSource
from slm.data.hub import HubSource
from slm.data.source import Piece, Source, describe_source
from slm.errors import UserError

BUILTIN_STORIES = 40_000


def open_source(spec: str | list[str], text_column: str = "text") -> Source:
    """The source of a value of `--data.source`; nothing is read yet.

    Args:
        spec: `hub:OWNER/NAME`, `builtin`, the path of a file or folder, a pattern with `*`, or a
            list of these.
        text_column: Column of the stories, or a template over several.

    Raises:
        UserError: The spec is empty, or the template malformed.
    """
    text = StoryText(text_column)
    if isinstance(spec, list):
        if not spec:
            raise UserError("--data.source []", "at least one source", "--data.source builtin")
        sources = [open_source(one, text_column) for one in spec]
        return sources[0] if len(sources) == 1 else JoinedSource(sources)
    if not spec.strip() or spec == "hub:":
        found = f"--data.source '{spec}' names no source"
        expected = "hub:OWNER/NAME, a file, a folder, a pattern or builtin"
        raise UserError(found, expected, "--data.source builtin")
    if spec == "builtin":
        return BuiltinSource()
    if spec.startswith("hub:"):
        return HubSource(spec.removeprefix("hub:"), text)
    return FileSource(Path(spec).expanduser(), text)


@dataclass(frozen=True)
class BuiltinPiece:
    """All built-in stories, because the generator cannot start in the middle."""

    count: int
    label: str
    weight: int
    split: str | None = None
    has_columns: bool = False

    def stories(self) -> Iterator[str]:
        return builtin_stories(self.count)


class BuiltinSource:
    """Stories written by this project's own seeded generator."""

    spec = "builtin"
    name = "builtin"

    def __init__(self, count: int = BUILTIN_STORIES) -> None:
        self.count = count

    def revision(self) -> str:
        """Number of stories and a hash of the first thousand."""
        digest = hashlib.sha256("\0".join(builtin_stories(min(1000, self.count))).encode())
        return f"{self.count}-stories-{digest.hexdigest()[:16]}"

    def exists(self) -> bool:
        return True

    def unchanged_since(self, revision: str) -> bool:
        return self.revision() == revision

    def describe(self) -> str:
        return ""

    def pieces(self, piece_bytes: int) -> list[Piece]:
        return [BuiltinPiece(self.count, self.revision(), 800 * self.count)]


class JoinedSource:
    """Several sources, one after the other, each with its own splits."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self.spec = [describe_source(source.spec) for source in sources]
        names = list(dict.fromkeys(source.name for source in sources))
        self.name = "+".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2}-more"])

    def revision(self) -> str:
        return " ".join(source.revision() or "-" for source in self.sources)

    def exists(self) -> bool:
        return all(source.exists() for source in self.sources)

    def unchanged_since(self, revision: str) -> bool:
        parts = revision.split(" ")
        return len(parts) == len(self.sources) and all(
            source.unchanged_since(part) for source, part in zip(self.sources, parts, strict=True)
        )

    def describe(self) -> str:
        return "; ".join(filter(None, (source.describe() for source in self.sources)))

    def pieces(self, piece_bytes: int) -> list[Piece]:
        return [piece for source in self.sources for piece in source.pieces(piece_bytes)]
