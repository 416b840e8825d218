"""Stories from files, in pieces: .txt, .jsonl, .csv and .parquet, each also as .gz."""

import contextlib
import csv
import gzip
import shutil
import string
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

from slm.data.columns import StoryText
from slm.data.json_array import DECODER, is_array, read_array
from slm.data.tokenizer import END_OF_TEXT
from slm.errors import UserError
from slm.files import utf8_conversion

KINDS = (".txt", ".jsonl", ".csv", ".parquet")
SUFFIXES = (*KINDS, *(f"{kind}.gz" for kind in KINDS))
_UNREADABLE = (OSError, EOFError, zlib.error)
LONGEST_STORY = 64 << 20
"""Bytes. A longer story means that a separator is missing."""

_SEPARATOR = END_OF_TEXT.encode()
_BLOCK = 1 << 20


def kind_of(path: Path) -> str | None:
    """One of `KINDS`, compressed or not, `.jsonl` for `.json` too; None for other files."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".json"):
        return ".jsonl"
    return next((kind for kind in KINDS if name.endswith(kind)), None)


@dataclass(frozen=True)
class FilePiece:
    """The stories that begin in a part of a file: consecutive pieces yield each story once."""

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
        """The texts; the longest one bounds the memory used.

        In `.txt` files `<|endoftext|>` separates stories, surrounding white space is removed, and
        CR LF is a line break. In the other formats each row is a story, left unchanged. A
        byte-order mark at the beginning is dropped.

        Raises:
            UserError: The file is missing, not UTF-8, malformed, or has no such column; the message
                names the position.
        """
        readers = {".txt": _read_txt, ".jsonl": _read_json, ".csv": _read_csv}
        try:
            if (kind := kind_of(self.path)) in readers:
                with _open(self.path) as file:
                    yield from readers[kind](file, self)
            else:
                yield from _read_parquet(self)
        except _UNREADABLE as error:
            raise UserError.unreadable(self.path, error) from error


def cut_file(path: Path, text: StoryText, split: str | None, piece_bytes: int) -> list[FilePiece]:
    """Cuts a file into pieces of about `piece_bytes` that can be read independently.

    A compressed file, a `.csv` (whose cells may contain line breaks) and a JSON array can only be
    read from the beginning, so each is one piece. A parquet file is cut between its row groups.

    Raises:
        UserError: The file is of an unknown kind, or cannot be read.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'}",
            f"a file of stories: {', '.join(KINDS)}, or one of these as .gz",
            "use a file of one of these formats as --data.source",
        )
    try:
        size = path.stat().st_size
        array = kind == ".jsonl" and _is_array(path)
        if path.suffix.lower() == ".gz" or kind == ".csv" or array:
            return [FilePiece(path, text, split, 0, sys.maxsize, size)]
        if kind == ".parquet":
            return _cut_parquet(path, text, split, piece_bytes)
    except _UNREADABLE as error:
        raise UserError.unreadable(path, error) from error
    ranges = pairwise([*range(0, max(size, 1), piece_bytes), size])
    return [FilePiece(path, text, split, start, stop, stop - start) for start, stop in ranges]


def read_stories(path: Path, text_column: str) -> Iterator[str]:
    """The texts of a whole file; see `FilePiece.stories`."""
    for piece in cut_file(path, StoryText(text_column), None, sys.maxsize):
        yield from piece.stories()


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _check_length(length: int, path: Path, separator: str) -> None:
    if length > LONGEST_STORY:
        found = f"{path} contains a story of more than {LONGEST_STORY >> 20} MB"
        raise UserError(found, f"stories separated by {separator}", "add the missing separators")


def _segments(file: IO[bytes], start: int, stop: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """The segments between separators that begin in [start, stop), with their offsets.

    White space before the first and after the last separator of the file is no segment; between two
    separators it is an empty story.
    """
    # A segment whose separator ends at `start` belongs to this piece.
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
        if skipping:  # keep only what may be the beginning of a separator
            surplus = max(0, len(carry) - len(_SEPARATOR) + 1)
            begin, carry = begin + surplus, carry[surplus:]
        _check_length(len(carry), path, END_OF_TEXT)
        if not block:
            if not skipping and not _is_blank(carry):
                yield begin, carry
            return


def _is_blank(data: bytes) -> bool:
    """Whether text is only white space, apart from a byte-order mark."""
    return not data.decode(errors="replace").removeprefix("\ufeff").strip()


def _read_txt(file: IO[bytes], piece: FilePiece) -> Iterator[str]:
    for begin, segment in _segments(file, piece.start, piece.stop, piece.path):
        story = _decode(segment, begin, piece.path).replace("\r\n", "\n")
        yield (story if begin else story.removeprefix("\ufeff")).strip()


def _lines(file: IO[bytes], piece: FilePiece) -> Iterator[tuple[int, str]]:
    """The lines that begin in a piece, with their offsets."""
    position = max(0, piece.start - 1)
    file.seek(position)
    skipping = piece.start > 0  # the first line belongs to the piece before
    while position < piece.stop and (line := file.readline(LONGEST_STORY + 1)):
        _check_length(len(line), piece.path, "a line break")
        if not skipping:
            text = _decode(line, position, piece.path)
            yield position, text if position else text.removeprefix("\ufeff")
        skipping = False
        position += len(line)


def _read_json(file: IO[bytes], piece: FilePiece) -> Iterator[str]:
    """One object per line, or one array of objects."""
    position: object = ""
    try:
        if piece.stop == sys.maxsize and _is_array(piece.path):
            for count, row in enumerate(read_array(file, LONGEST_STORY), 1):
                position = f"{piece.path}, object {count}"
                yield _story(row, piece, position)
                position = f"{piece.path}, after object {count}"
            return
        for begin, line in _lines(file, piece):
            if line.strip(string.whitespace):
                position = _Line(piece.path, begin)
                yield _story(DECODER.decode(line), piece, position)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{position or piece.path}: {error}",
            "one JSON object per line, or one array of objects",
            "repair or delete what is there",
        ) from error


def _is_array(path: Path) -> bool:
    return is_array(_head(path))


def _head(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(4096)


def _story(row: Any, piece: FilePiece, position: object) -> str:
    if not isinstance(row, dict):
        raise UserError(
            f"{position} contains a JSON {type(row).__name__}",
            'a JSON object, such as {"text": "Once upon a time"}',
            "write each story as such an object",
        )
    return piece.text.of(row, position)


def _read_csv(file: IO[bytes], piece: FilePiece) -> Iterator[str]:
    csv.field_size_limit(LONGEST_STORY)
    # strict: else an unclosed quotation mark swallows the rest of the file.
    rows = csv.reader((line for _, line in _lines(file, piece)), strict=True)
    try:
        header = next(rows, [])
        piece.text.check(header, piece.path)
        for row in filter(None, rows):
            position = f"{piece.path}, line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(
                    f"{position} has {len(row)} cells",
                    f"{len(header)}, as the first line has: {', '.join(header)}",
                    "put text that contains commas in quotation marks",
                )
            yield piece.text.of(dict(zip(header, row, strict=True)), position)
    except csv.Error as error:
        raise UserError(
            f"{piece.path}, line {rows.line_num}: {error}",
            "CSV in which quotation marks within cells are doubled",
            "repair or delete that line",
        ) from error


def _read_parquet(piece: FilePiece) -> Iterator[str]:
    with _parquet(piece.path) as table:
        piece.text.check(table.schema_arrow.names, piece.path)
        groups = range(piece.start, min(piece.stop, table.num_row_groups))
        columns = list(piece.text.columns)
        count = sum(table.metadata.row_group(group).num_rows for group in range(piece.start))
        for batch in table.iter_batches(batch_size=128, row_groups=groups, columns=columns):
            try:
                rows: Iterable[Any] = batch.to_pylist()
            except UnicodeDecodeError:
                rows = (row.as_py() for row in batch.to_struct_array())  # to find the row: slower
            try:
                for row in rows:
                    count += 1
                    yield piece.text.of(row, f"{piece.path}, row {count}")
            except UnicodeDecodeError as error:
                found = f"{piece.path}, row {count + 1} is not UTF-8 text: {error.reason}"
                raise UserError(found, "UTF-8", "repair or delete that row") from error


def _cut_parquet(
    path: Path, text: StoryText, split: str | None, piece_bytes: int
) -> list[FilePiece]:
    """Runs of row groups of about `piece_bytes` before compression."""
    with _parquet(path) as table:
        groups = range(table.num_row_groups)
        sizes = [table.metadata.row_group(group).total_byte_size for group in groups]
    starts, piece_size = [0], 0
    for group, size in enumerate(sizes):
        if piece_size >= piece_bytes:
            starts.append(group)
            piece_size = 0
        piece_size += size
    return [
        FilePiece(path, text, split, start, stop, sum(sizes[start:stop]))
        for start, stop in pairwise([*starts, len(sizes)])
    ]


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Opens a parquet file; a .gz is decompressed into a temporary file first."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open(path))
        if path.suffix.lower() == ".gz":
            compressed, file = file, stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(compressed, file)
        try:
            yield stack.enter_context(pyarrow.parquet.ParquetFile(file, buffer_size=_BLOCK))
        except pyarrow.ArrowInvalid as error:
            remedy = "download or write the file again"
            raise UserError(f"{path}: {error}", "a parquet file", remedy) from error


def _decode(data: bytes, begin: int, path: Path) -> str:
    try:
        if (nul := data.find(b"\0")) >= 0:
            raise UnicodeDecodeError("utf-8", data, nul, nul + 1, "a NUL character")
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{_Line(path, begin + error.start)} is not UTF-8 text: {error.reason} "
            f"(byte 0x{data[error.start]:02x} at {begin + error.start:,})",
            "UTF-8",
            f"convert the file, for instance: {utf8_conversion(_head(path))}",
        ) from error


@dataclass(frozen=True)
class _Line:
    """The line number of a byte in a file, counted only when a message needs it."""

    path: Path
    offset: int

    def __str__(self) -> str:
        line, remaining = 1, self.offset
        with _open(self.path) as file:
            while remaining > 0 and (block := file.read(min(_BLOCK, remaining))):
                line += block.count(b"\n")
                remaining -= len(block)
        return f"{self.path}, line {line}"
