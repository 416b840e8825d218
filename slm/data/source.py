"""The interface of sources of stories, which are read in pieces."""

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Protocol

from slm.printable import printable


class Piece(Protocol):
    """A part of a source that can be read on its own, possibly by another process."""

    @property
    def split(self) -> str | None:
        """`train` or `validation`; None if each story's own text decides."""

    @property
    def label(self) -> str:
        """Identity of the piece; changes if its contents may have changed."""

    @property
    def weight(self) -> int:
        """The approximate size in bytes."""

    @property
    def has_columns(self) -> bool:
        """Whether the stories are taken from rows."""

    def stories(self) -> Iterator[str]:
        """The texts; some may be empty.

        Raises:
            UserError: They cannot be read.
        """


class Source(Protocol):
    """A set of stories.

    `revision`, `describe` and `pieces` raise UserError if the source cannot be read.
    """

    @property
    def spec(self) -> str | list[str]:
        """The value of `--data.source`, with absolute paths; stored in manifests."""

    @property
    def name(self) -> str:
        """A short name, for the folder of the prepared data."""

    def revision(self) -> str:
        """Fingerprint of the present contents, without spaces."""

    def exists(self) -> bool:
        """Whether there is something to read; does not use the network."""

    def unchanged_since(self, revision: str) -> bool:
        """Whether data prepared from `revision` are still valid, as far as known."""

    def describe(self) -> str:
        """What is read, if the spec does not show it; else ""."""

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """The whole source in pieces of about that size, in a fixed order."""


def describe_source(spec: str | list[str]) -> str:
    """A source's spec as one line."""
    return printable(spec if isinstance(spec, str) else " + ".join(spec))


def held_out(story: str, share: float) -> bool:
    """Whether a story belongs to the validation split, by 64 bits of its BLAKE2b hash.

    Surrounding white space does not matter. An empty story is for training.
    """
    text = story.strip().encode("utf-8", "surrogatepass")
    number = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    return bool(text) and number < share * 2**64


def tidy(name: str) -> str:
    """A name that is valid for a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "stories"
