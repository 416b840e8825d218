"""What a source of stories is: something that can be read in pieces."""

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Protocol


class Piece(Protocol):
    """A part of a source that can be read on its own, also by another process."""

    @property
    def split(self) -> str | None:
        """`train` or `validation`; None if each story's own text decides."""

    @property
    def label(self) -> str:
        """Identity of the piece; changes when its contents may have changed."""

    @property
    def weight(self) -> int:
        """Its approximate size in bytes."""

    @property
    def has_columns(self) -> bool:
        """Whether the stories are taken from rows."""

    def stories(self) -> Iterator[str]:
        """The texts; some may be empty.

        Raises:
            UserError: They cannot be read.
        """


class Source(Protocol):
    """A set of stories."""

    @property
    def spec(self) -> str | list[str]:
        """The source's name, stored in manifests."""

    @property
    def name(self) -> str:
        """A short name, for the folder of the prepared data."""

    def revision(self) -> str:
        """Fingerprint of the present contents, without spaces.

        Raises:
            UserError: The source does not exist.
        """

    def exists(self) -> bool:
        """Whether there is something to read, as far as is known without a network."""

    def unchanged_since(self, revision: str) -> bool:
        """Whether data prepared from `revision` are still valid, as far as known."""

    def describe(self) -> str:
        """What is read, if that is not plain from the spec; else "".

        Raises:
            UserError: The source cannot be read.
        """

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """The whole source in pieces of about that size, in a fixed order.

        Raises:
            UserError: The source cannot be read.
        """


def describe_source(spec: str | list[str]) -> str:
    """A source's spec as one line."""
    return spec if isinstance(spec, str) else " + ".join(spec)


def held_out(story: str, share: float) -> bool:
    """Whether a story belongs to the validation split, by 64 bits of the BLAKE2b hash of its text.

    White space around it does not matter. A story without text is for training.
    """
    text = story.strip().encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    return bool(text) and drawn < share * 2**64


def tidy(name: str) -> str:
    """A name that is fit for a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "stories"
