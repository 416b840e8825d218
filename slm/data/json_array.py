"""The rows of a file that is one JSON array, as TinyStories publishes its stories."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

_BLOCK = 1 << 20
_OPENING = re.compile(r"\s*\[\s*(?P<end>\])?")
_BETWEEN = re.compile(r"\s*(?:,\s*|(?P<end>\]))")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} occurs twice")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
"""Refuses an object with a repeated key, of which Python would take the last."""


def is_array(head: bytes) -> bool:
    """Whether the beginning of a file is that of a JSON array."""
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def read_array(file: IO[bytes], longest: int) -> Iterator[Any]:
    """The rows, read in blocks: a row of at most `longest` characters bounds the memory used.

    Raises:
        ValueError: The file is not one JSON array in UTF-8.
    """
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    text, before, more = "", _OPENING, True
    while more:
        # At least as much again, so that a long row is not parsed many times.
        more = bool(block := file.read(max(_BLOCK, len(text))))
        try:
            text += utf8.decode(block, not more)
        except UnicodeDecodeError as error:
            position = file.tell() - len(error.object) + error.start
            raise ValueError(f"byte {position:,} of the file is not UTF-8") from error
        at = 0
        while found := before.match(text, at):
            if found["end"]:
                if (text[found.end() :].encode() + file.read(_BLOCK)).strip():
                    raise ValueError("text after the end of the array")
                return
            try:
                row, end = DECODER.raw_decode(text, found.end())
            except ValueError:
                if more and len(text) - at <= longest:
                    break  # the row may continue in the next block
                raise
            yield row
            at, before = end, _BETWEEN
        else:
            if text[at:].strip():
                raise ValueError("no comma after the object")
        text = text[at:]
    raise ValueError("the array does not end")
