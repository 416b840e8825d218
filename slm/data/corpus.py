"""Which stories to prepare, how to read them, and how to tokenise them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.data.cleaning import Cleaning
from slm.data.columns import StoryText
from slm.data.readers import LONGEST_STORY
from slm.data.requests import Request
from slm.data.source import Piece, Source, describe_source, held_out
from slm.data.sources import open_source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """The options that determine the contents and the location of prepared data.

    Raises:
        UserError: An option is out of range.
    """

    source: str | list[str] = "hub:roneneldan/TinyStories"
    """Where the stories come from: `hub:OWNER/NAME`, a file, a folder, a pattern such as
    "books/*.jsonl" (in quotes), `builtin`, or a list of these. Files are .txt (with
    <|endoftext|> between stories), .jsonl, .csv, .parquet, or one of these as .gz."""
    root: str = "data"
    """Folder for prepared data; each source and tokenizer gets a folder in it."""
    tokenizer: str = "gpt2"
    """`gpt2`, `bpe` (a vocabulary learnt from these stories), or the path of a checkpoint or
    tokenizer.json whose vocabulary to use."""
    vocab_size: int = 50257
    """Size of a `bpe` vocabulary to learn; `gpt2` has 50257."""
    text_column: str = "text"
    """Column of the stories if there are columns, or a template over several:
    `{Context}\\n{Response}`."""
    validation_share: float = 0.02
    """Part of the stories held out if a source has no validation split."""
    clean: Cleaning = Cleaning()
    """What to leave out or repair."""
    request: Request | None = None
    """`words` puts a request in front of half of the training stories: two to four of their own
    words. The model learns to generate stories with given words (`slm predict --words`)."""
    prepare_workers: int | None = None
    """Processes that prepare data; null takes one for each core."""

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_share < 1.0:
            found = f"--data.validation_share {self.validation_share}"
            raise UserError(found, "a share above 0 and below 1", "--data.validation_share 0.02")
        if self.prepare_workers is not None and self.prepare_workers < 1:
            found = f"--data.prepare_workers {self.prepare_workers}"
            raise UserError(found, "1 or more", "omit it: one for each core")
        if self.tokenizer == "gpt2" and self.vocab_size != 50257:
            raise UserError(
                f"--data.vocab_size {self.vocab_size} with --data.tokenizer gpt2",
                "GPT-2's own vocabulary of 50257",
                f"--data.tokenizer bpe --data.vocab_size {self.vocab_size} learns one of that size",
            )
        if self.tokenizer not in ("gpt2", "bpe") and not Path(self.tokenizer).expanduser().exists():
            raise UserError(
                f"--data.tokenizer {self.tokenizer}",
                "gpt2, bpe, or the path of a checkpoint or a tokenizer.json",
                "--data.tokenizer bpe --data.vocab_size 4096",
            )

    @cached_property
    def opened(self) -> Source:
        """The source that `source` describes."""
        return open_source(self.source, self.text_column)

    @cached_property
    def given_tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if it must be learnt.

        Raises:
            UserError: It cannot be read.
        """
        if self.tokenizer == "bpe":
            return None
        if self.tokenizer == "gpt2":
            return Tokenizer.gpt2()
        return Tokenizer.load(Path(self.tokenizer).expanduser())

    @property
    def reading(self) -> dict[str, Any]:
        """The options that determine the text of the stories, in plain types."""
        request = {"request": self.request} if self.request else {}
        return {
            "text_column": StoryText(self.text_column).normalized,
            "validation_share": self.validation_share,
            **asdict(self.clean),
            **request,
        }

    def reading_of(self, pieces: list[Piece]) -> dict[str, Any]:
        """`reading`, with None for options that do not affect these pieces."""
        reading = self.reading
        if not any(piece.has_columns for piece in pieces):
            reading["text_column"] = None
        if all(piece.split for piece in pieces):
            reading["validation_share"] = None
        return reading

    def to_plain(self) -> dict[str, Any]:
        """The options in plain types, paths made absolute."""
        plain = asdict(self)
        del plain["prepare_workers"]  # depends on this machine
        plain |= {"source": self.opened.spec, "root": str(Path(self.root).expanduser().resolve())}
        if self.tokenizer not in ("gpt2", "bpe"):
            plain["tokenizer"] = str(Path(self.tokenizer).expanduser().resolve())
        return plain

    def folder_name(self) -> str:
        """The name of the folder of prepared data: `TinyStories-gpt2`, `builtin-bpe2048`."""
        tokenizer = self.given_tokenizer if self.tokenizer != "gpt2" else None
        if tokenizer is not None and tokenizer.name != "gpt2":
            end = f"bpe{tokenizer.n_vocab}-{tokenizer.sha256[:8]}"
        else:
            end = "gpt2" if self.tokenizer != "bpe" else f"bpe{self.vocab_size}"
        request = f"-{self.request}" if self.request else ""
        return f"{self.opened.name}-{end}{self.clean.suffix()}{request}"

    def stories(self, piece: Piece) -> Iterator[tuple[str, str, bool]]:
        """The stories of a piece, each with its split and whether it was repaired.

        A lone surrogate, which JSON can contain, becomes "?".
        """
        repair = self.clean.make_repair()
        for raw in piece.stories():
            if len(raw) > LONGEST_STORY:
                raise UserError(
                    f"a story of {len(raw):,} characters in {describe_source(self.opened.spec)}",
                    f"stories of at most {LONGEST_STORY:,}",
                    "cut it into several",
                )
            story = repair(raw)
            repaired = story != raw
            if not story.isascii():  # a test faster than encoding
                story = story.encode(errors="replace").decode()
            split = piece.split
            if split is None:
                split = "validation" if held_out(story, self.validation_share) else "train"
            yield split, story, repaired
