"""Where stories come from: a value of `--data.source`, understood."""

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
    if not spec.strip() or spec == "hub:":
        raise UserError(
            f"--data.source '{spec}' names nothing",
            "hub:OWNER/NAME, a file, a folder, a pattern or builtin",
            "--data.source builtin",
        )
    if spec == "builtin":
        return BuiltinSource()
    if spec.startswith("hub:"):
        return HubSource(spec.removeprefix("hub:"), text)
    return FileSource(Path(spec).expanduser(), text)


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

    def exists(self) -> bool:
        """Always."""
        return True

    def unchanged_since(self, revision: str) -> bool:
        """Whether the generator still tells the same stories."""
        return self.revision() == revision

    def describe(self) -> str:
        """Nothing more."""
        return ""

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """One, whatever the size."""
        return [BuiltinPiece(self.count, self.revision())]


class JoinedSource:
    """Several sources, one after the other; each is split in its own way."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self.spec = [describe_source(source.spec) for source in sources]
        names = list(dict.fromkeys(source.name for source in sources))
        self.name = "+".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2}-more"])

    def revision(self) -> str:
        """All of theirs, none of which holds a space."""
        return " ".join(source.revision() or "-" for source in self.sources)

    def exists(self) -> bool:
        """Whether all of them do."""
        return all(source.exists() for source in self.sources)

    def unchanged_since(self, revision: str) -> bool:
        """Whether none of them has changed."""
        parts = revision.split(" ")
        return len(parts) == len(self.sources) and all(
            source.unchanged_since(part) for source, part in zip(self.sources, parts, strict=True)
        )

    def describe(self) -> str:
        """What they say."""
        return "; ".join(filter(None, (source.describe() for source in self.sources)))

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """Theirs."""
        return [piece for source in self.sources for piece in source.pieces(piece_bytes)]
