"""Stories from files: .txt, .jsonl, .csv and .parquet, each also as .gz, in pieces."""

import contextlib
import csv
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from slm.data.columns import StoryText
from slm.data.tokenizer import END_OF_TEXT
from slm.errors import UserError

KINDS = (".txt", ".jsonl", ".csv", ".parquet")
SUFFIXES = (*KINDS, *(f"{kind}.gz" for kind in KINDS))
LONGEST_STORY = 64 << 20
"""Bytes. A longer one means that a separator is missing."""

_SEPARATOR = END_OF_TEXT.encode()
_BLOCK = 1 << 20


def kind_of(path: Path) -> str | None:
    """`.txt`, `.jsonl`, `.csv` or `.parquet`, compressed or not; None for other files.

    `.json` is read as JSON lines.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".json"):
        return ".jsonl"
    return next((kind for kind in KINDS if name.endswith(kind)), None)


@dataclass(frozen=True)
class FilePiece:
    """The stories that begin in a part of a file.

    Consecutive pieces of a file give each of its stories once, in order.
    """

    path: Path
    text: StoryText
    split: str | None
    """`train` or `validation`; None if each story's own text decides."""
    start: int
    stop: int
    """Bytes of the uncompressed file; row groups of a parquet file."""
    weight: int
    """Bytes on disk, for progress."""

    @property
    def label(self) -> str:
        now = self.path.stat()
        position = f"{self.path} {self.split} {self.start}-{self.stop}"
        return f"{position} {now.st_size} {now.st_mtime_ns}"

    @property
    def has_columns(self) -> bool:
        return kind_of(self.path) != ".txt"

    def stories(self) -> Iterator[str]:
        """The texts; memory is bounded by the longest.

        In `.txt` files `<|endoftext|>` separates stories, white space around a story does not
        belong to it, and CR LF is a line break. In the other formats each row is a story, left
        unchanged. A byte-order mark at the beginning is dropped.

        Raises:
            UserError: The file is missing, not UTF-8, malformed, or has no such column; the message
                names the position.
        """
        readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}
        try:
            if (kind := kind_of(self.path)) in readers:
                with _open(self.path) as file:
                    yield from readers[kind](file, self)
            else:
                yield from _read_parquet(self)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError.unreadable(self.path, error) from error


def cut_file(path: Path, text: StoryText, split: str | None, piece_bytes: int) -> list[FilePiece]:
    """Cuts a file into pieces of about `piece_bytes` that can be read independently.

    A compressed file and a `.csv` (in which a line break may be part of a cell) can only be read
    from the beginning: they are one piece. A parquet file is cut between its row groups.

    Raises:
        UserError: The file is of an unknown kind, or cannot be read.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'}",
            f"a file of stories: {', '.join(KINDS)}, or one of these as .gz",
            "give a file of such a kind to --data.source",
        )
    try:
        size = path.stat().st_size
        if path.suffix.lower() == ".gz" or kind == ".csv":
            return [FilePiece(path, text, split, 0, sys.maxsize, size)]
        if kind == ".parquet":
            return _cut_parquet(path, text, split, piece_bytes)
    except OSError as error:
        raise UserError.unreadable(path, error) from error
    starts = range(0, max(size, 1), piece_bytes)
    stops = [*starts[1:], size]
    return [
        FilePiece(path, text, split, start, stop, stop - start)
        for start, stop in zip(starts, stops, strict=True)
    ]


def read_stories(path: Path, text_column: str) -> Iterator[str]:
    """The texts of one whole file; see `FilePiece.stories`."""
    for piece in cut_file(path, StoryText(text_column), None, sys.maxsize):
        yield from piece.stories()


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _check_length(length: int, path: Path, separator: str) -> None:
    if length > LONGEST_STORY:
        raise UserError(
            f"{path} contains a story of more than {LONGEST_STORY >> 20} MB",
            f"stories with {separator} between them",
            "put separators where the stories end",
        )


def _segments(file: IO[bytes], start: int, stop: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """The segments between separators that begin in [start, stop), with their offsets.

    Those before the first and after the last separator of the file count if they are more than
    white space; nothing but white space between two separators is an empty story.
    """
    # A separator that ends at `start` opens a segment that is ours.
    begin = max(0, start - len(_SEPARATOR))
    file.seek(begin)
    skipping, carry = start > 0, b""
    while begin < stop:
        block = file.read(_BLOCK)
        *whole, carry = (carry + block).split(_SEPARATOR)
        for segment in whole:
            if not skipping and (begin > 0 or not _is_blank(segment)):
                yield begin, segment
            skipping = False
            begin += len(segment) + len(_SEPARATOR)
            if begin >= stop:
                return
        if skipping:  # keep no more than what may be the first half of a separator
            surplus = max(0, len(carry) - len(_SEPARATOR) + 1)
            begin, carry = begin + surplus, carry[surplus:]
        _check_length(len(carry), path, END_OF_TEXT)
        if not block:
            if not skipping and not _is_blank(carry):
                yield begin, carry
            return


def _is_blank(data: bytes) -> bool:
    """Whether text is white space only, apart from a byte-order mark."""
    return not data.decode(errors="replace").removeprefix("\ufeff").strip()


def _read_txt(file: IO[bytes], piece: FilePiece) -> Iterator[str]:
    for begin, segment in _segments(file, piece.start, piece.stop, piece.path):
        story = _decode(segment, begin, piece.path).replace("\r\n", "\n")
        yield (story if begin else story.removeprefix("\ufeff")).strip()


def _read_jsonl(file: IO[bytes], piece: FilePiece) -> Iterator[str]:
    position = max(0, piece.start - 1)
    file.seek(position)
    skipping = piece.start > 0
    while position < piece.stop and (line := file.readline(LONGEST_STORY + 1)):
        begin, position = position, position + len(line)
        _check_length(len(line), piece.path, "a line break")
        if skipping:  # the line that the piece before ends with
            skipping = False
            continue
        if not line.strip():
            continue
        text = _decode(line, begin, piece.path)
        try:
            row = json.loads(text if begin else text.removeprefix("\ufeff"))
        except ValueError as error:
            raise UserError(
                f"{_Line(piece.path, begin)}: {error}",
                "one JSON object per line",
                "repair or delete that line; for one large JSON array, put each of its objects "
                "on a line",
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{_Line(piece.path, begin)} contains a JSON {type(row).__name__}",
                'one JSON object per line, such as {"text": "Once upon a time"}',
                "write each story as such a line",
            )
        yield piece.text.of(row, _Line(piece.path, begin))


def _read_csv(file: IO[bytes], piece: FilePiece) -> Iterator[str]:
    def lines() -> Iterator[str]:
        begin = 0
        while line := file.readline(LONGEST_STORY + 1):
            _check_length(len(line), piece.path, "a line break")
            text = _decode(line, begin, piece.path)
            yield text if begin else text.removeprefix("\ufeff")
            begin += len(line)

    csv.field_size_limit(LONGEST_STORY)
    # strict: a quotation mark that is never closed would swallow the rest of the file.
    rows = csv.reader(lines(), strict=True)
    try:
        header = next(rows, [])
        piece.text.check(header, str(piece.path))
        for row in rows:
            position = f"{piece.path}, line {rows.line_num}"
            if row and len(row) != len(header):
                raise UserError(
                    f"{position} has {len(row)} cells",
                    f"{len(header)}, as the first line has: {', '.join(header)}",
                    "put text that contains commas in quotation marks",
                )
            if row:
                yield piece.text.of(dict(zip(header, row, strict=True)), position)
    except csv.Error as error:
        raise UserError(
            f"{piece.path}, line {rows.line_num}: {error}",
            "CSV, with quotation marks in cells doubled",
            "repair or delete that line",
        ) from error


def _read_parquet(piece: FilePiece) -> Iterator[str]:
    with _parquet(piece.path) as table:
        piece.text.check(table.schema_arrow.names, str(piece.path))
        groups = range(piece.start, min(piece.stop, table.num_row_groups))
        columns = list(piece.text.columns)
        for batch in table.iter_batches(batch_size=128, row_groups=groups, columns=columns):
            for row in batch.to_pylist():
                yield piece.text.of(row, str(piece.path))


def _cut_parquet(
    path: Path, text: StoryText, split: str | None, piece_bytes: int
) -> list[FilePiece]:
    """Runs of row groups of about `piece_bytes` before compression."""
    with _parquet(path) as table:
        sizes = [
            table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)
        ]
    starts, held = [0], 0
    for group, size in enumerate(sizes):
        if held >= piece_bytes:
            starts.append(group)
            held = 0
        held += size
    return [
        FilePiece(path, text, split, start, stop, sum(sizes[start:stop]))
        for start, stop in zip(starts, [*starts[1:], len(sizes)], strict=True)
    ]


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Opens a parquet file; a compressed one is unpacked into a temporary file first."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if path.suffix.lower() == ".gz":
            file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            with gzip.open(path, "rb") as packed:
                shutil.copyfileobj(packed, file)
        else:
            file = stack.enter_context(path.open("rb"))
        try:
            yield stack.enter_context(pyarrow.parquet.ParquetFile(file, buffer_size=_BLOCK))
        except pyarrow.ArrowInvalid as error:
            raise UserError(
                f"{path}: {error}", "a parquet file", "download or write the file again"
            ) from error


def _decode(data: bytes, begin: int, path: Path) -> str:
    """UTF-8 bytes as text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{_Line(path, begin + error.start)} is not UTF-8 text: {error.reason} "
            f"(byte 0x{data[error.start]:02x} at {begin + error.start:,})",
            "UTF-8",
            "convert the file's text, for instance from Windows' encoding: "
            "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error


@dataclass(frozen=True)
class _Line:
    """The line of a byte in a file; counted when a message needs it."""

    path: Path
    offset: int

    def __str__(self) -> str:
        line, left = 1, self.offset
        with _open(self.path) as file:
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                line += block.count(b"\n")
                left -= len(block)
        return f"{self.path}, line {line}"
