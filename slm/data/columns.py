"""The story in a row: one column, or a template over several."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

from slm.errors import UserError


@dataclass(frozen=True)
class StoryText:
    """Extracts the story from a row.

    Raises:
        UserError: The template has an unclosed brace, a field without a name, or no field.
    """

    spec: str
    r"""A column's name, or a template in which `{Name}` stands for the column Name, such as
    `{Context}\n{Response}`. A backslash and an `n`, as a shell passes them, are a line break; `{{`
    and `}}` are braces."""

    def __post_init__(self) -> None:
        try:
            # `{a: b}` and `{a!r}` are formats in Python's templates, and nothing here.
            parts = list(Formatter().parse(self.normalized)) if self.is_template else []
            valid = bool(self.columns) and all(self.columns)
            valid = valid and not any(spec or conversion for _, _, spec, conversion in parts)
        except ValueError:
            valid = False
        if not valid:
            raise UserError(
                f"--data.text_column {self.spec}",
                "a column's name, or a template with names of columns in braces",
                r"--data.text_column '{Context}\n{Response}'",
            )

    @property
    def is_template(self) -> bool:
        """Whether the spec contains braces."""
        return "{" in self.spec or "}" in self.spec

    @property
    def normalized(self) -> str:
        """The column or template, with real line breaks and tabs."""
        if not self.is_template:
            return self.spec
        return self.spec.replace("\\n", "\n").replace("\\t", "\t")

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """Literal texts, each with the column that follows it."""
        if not self.is_template:
            return [("", self.spec)]
        return [(literal, column) for literal, column, _, _ in Formatter().parse(self.normalized)]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the required columns."""
        return tuple(dict.fromkeys(column for _, column in self._parts if column is not None))

    def check(self, present: list[str], source: object) -> None:
        """Checks that a table, called `source` in the message, has the columns.

        Raises:
            UserError: A column is missing, or occurs twice.
        """
        for column in self.columns:
            if present.count(column) > 1:
                found = f"{source}: {present.count(column)} columns are called {column!r}"
                raise UserError(found, "one", "rename all but one of them in the file")
            if column in present:
                continue
            found = f"{source}: there is no column {column!r} among {', '.join(present) or 'none'}"
            if len(present) == 1 and re.search("[;\t|]", present[0]):
                raise UserError(
                    found, "columns separated by commas", "write the file with commas in between"
                )
            close = difflib.get_close_matches(column, present, n=1) or present or ["NAME"]
            spec = self.normalized.replace(f"{{{column}}}", f"{{{close[0]}}}").replace("\n", "\\n")
            raise UserError(
                found,
                "a column that contains the stories",
                f"name it: --data.text_column '{spec if self.is_template else close[0]}'",
            )

    def of(self, row: Mapping[str, Any], source: object) -> str:
        """The story of a row; `source` is its file and line, for error messages.

        A missing value (null) is an empty text. So is, in a template, a column that this row lacks,
        if the row has another one of the columns.

        Raises:
            UserError: A column is missing or contains something other than text.
        """
        if row.keys().isdisjoint(self.columns):
            self.check(list(row), source)
        return "".join(
            literal + ("" if column is None else self._cell(row.get(column), column, source))
            for literal, column in self._parts
        )

    def _cell(self, value: Any, column: str, source: object) -> str:
        if value is None:
            return ""
        if self.is_template and isinstance(value, int | float):
            return str(value)
        if not isinstance(value, str):
            found = f"{source}: column {column!r} contains {type(value).__name__}"
            raise UserError(found, "text", "name the stories' column by --data.text_column")
        return value
