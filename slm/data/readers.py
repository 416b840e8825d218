"""Stories out of files: .txt, .jsonl, .csv and .parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.data.tokenizer import END_OF_TEXT
from slm.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")


def read_stories(path: Path, text_column: str) -> Iterator[str]:
    """Yields the texts of one file, as they stand in it.

    `.txt` holds stories separated by `<|endoftext|>`; the other formats hold one story per row,
    in the column `text_column`. Nothing larger than one story, or one parquet row group, is held
    in memory.

    Raises:
        UserError: The file is missing, of an unknown kind, not UTF-8, malformed, or has no such
            column; the message names the place.
    """
    readers = {
        ".txt": lambda: _read_txt(path),
        ".jsonl": lambda: _read_jsonl(path, text_column),
        ".csv": lambda: _read_csv(path, text_column),
        ".parquet": lambda: _read_parquet(path, text_column),
    }
    if path.suffix not in readers:
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'}",
            f"a file of stories: {', '.join(SUFFIXES)}",
            "give a file of such a kind to --data.source",
        )
    try:
        yield from readers[path.suffix]()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: {error.reason} (byte 0x{error.object[error.start]:02x})",
            "UTF-8",
            f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {path} > {path.stem}-utf8{path.suffix}",
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}",
            "a readable file",
            "check the path and its permissions",
        ) from error


def _read_txt(path: Path) -> Iterator[str]:
    story: list[str] = []
    # utf-8-sig drops a byte-order mark if there is one.
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            *ends, rest = line.split(END_OF_TEXT)
            for end in ends:
                yield "".join([*story, end])
                story = []
            story.append(rest)
    yield "".join(story)


def _read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: {error}",
                    "one JSON object per line",
                    "repair or delete that line",
                ) from error
            columns = list(row) if isinstance(row, dict) else []
            yield _text(row, columns, text_column, f"{path}, line {number}")


def _read_csv(path: Path, text_column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # what a C long holds on every platform
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield _text(row, list(rows.fieldnames or ()), text_column, f"{path}, {rows.line_num}")


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"{path}: {error}", "a parquet file", "download or write the file again"
        ) from error
    columns = table.schema_arrow.names
    if text_column not in columns:
        _text({}, columns, text_column, str(path))
    for batch in table.iter_batches(batch_size=1024, columns=[text_column]):
        for text in batch.column(0).to_pylist():
            yield _text({text_column: text}, columns, text_column, str(path))


def _text(row: Any, columns: list[str], text_column: str, place: str) -> str:
    """The text of one row."""
    if text_column not in columns:
        raise UserError(
            f"{place}: there is no column {text_column!r} among {', '.join(columns) or 'none'}",
            "a column that holds the stories",
            f"name it: --data.text_column {columns[0] if columns else 'NAME'}",
        )
    return checked_text(row[text_column], text_column, place)


def checked_text(value: Any, text_column: str, place: str) -> str:
    """A cell as a text; an absent value (null) is an empty story.

    Raises:
        UserError: The cell holds something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{place}: column {text_column!r} holds {type(value).__name__}",
            "text",
            "name the column of the stories by --data.text_column",
        )
    return value
