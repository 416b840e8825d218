"""Prompts typed on a terminal: a story for each, with the model loaded once."""

import difflib
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache

from slm.commands.inference import check_takes_words
from slm.commands.parsing.options import Parser, add_options
from slm.commands.predict.options import make_requests
from slm.data.requests import split_words
from slm.errors import Stopped, UserError, user_errors
from slm.generation import SamplingOptions
from slm.generation.storyteller import PROMPT, Story, StoryRequest, Storyteller
from slm.printable import printable

_HIDDEN = ("num_samples", "stop", "log_probs")
_OPTIONS = [field.name for field in fields(SamplingOptions) if field.name not in _HIDDEN]
_COMMANDS = ["again", "words", *_OPTIONS, "help"]
_SHOWN = 1000
"""Characters of a prompt that are repeated before its story."""
HELP = f"""\
Type how a story begins, or only Return for {PROMPT!r}.

  /again             another story with the same beginning
  /words dragon, cake   words that the stories are to contain; /words alone: none
  /temperature 0.9   set an option; without a value, show it. The others are
                     {", ".join(f"/{name}" for name in _OPTIONS[1:6])},
                     {", ".join(f"/{name}" for name in _OPTIONS[6:])}
  /help              this

Ctrl-C ends a story, Ctrl-D the program. The arrow keys bring back earlier lines. After each story
the seed goes up by one.
"""


class Dialogue:
    """Asks for prompts until the end of the input.

    Args:
        storyteller: Generates the stories.
        options: How the first story is sampled.
        words: Words that stories are to contain.
        takes_words: Whether the model was trained on requests.
    """

    def __init__(
        self,
        storyteller: Storyteller,
        options: SamplingOptions,
        words: Sequence[str],
        takes_words: bool,
    ) -> None:
        self._storyteller = storyteller
        self._options = options
        self._words = tuple(words)
        self._takes_words = takes_words
        self._prompt = PROMPT

    def run(self) -> None:
        """Reads lines: a prompt, or a command."""
        with suppress(ImportError):  # Windows edits lines itself
            import readline  # gives `input` its history

            # Off in Python: a pasted text is one prompt, whatever line breaks it contains.
            readline.parse_and_bind("set enable-bracketed-paste on")
        print("How does the story begin? /help lists commands, Ctrl-D ends.", file=sys.stderr)
        while True:
            try:
                self._take(input("> "))
            except EOFError:
                print()
                return
            except UserError as error:
                print(printable(str(error)), file=sys.stderr)
            except KeyboardInterrupt as interrupt:
                if isinstance(interrupt, Stopped):
                    raise
                print()

    def _take(self, line: str) -> None:
        command, _, value = line.strip().partition(" ")
        name, value = command.removeprefix("/"), value.strip()
        if not command.startswith("/"):
            self._prompt = line if line.strip() else PROMPT
            self._generate()
        elif name == "again":
            self._generate()
        elif name == "words":
            self._set_words(value)
        elif name in _OPTIONS:
            self._set_option(name, value)
        elif name == "help":
            print(HELP, end="")
        else:
            close = difflib.get_close_matches(name, _COMMANDS, n=1)
            expected = f"one of {', '.join(f'/{known}' for known in _COMMANDS)}"
            remedy = f"/{close[0]}" if close else "/help"
            raise UserError(f"there is no command {command}", expected, remedy)

    def _set_words(self, value: str) -> None:
        if value:
            check_takes_words(self._takes_words)
        self._words = split_words(value)
        print(f"words: {', '.join(self._words) or 'none'}")

    def _set_option(self, name: str, value: str) -> None:
        if value:
            remedy = f"/{name} {_as_typed(getattr(self._options, name))}"
            try:
                found = _parser().parse_args([f"--{name}={value}"])[name]
            except UserError as error:
                raise UserError(error.found, error.expected, remedy) from error
            with user_errors(remedy):
                self._options = replace(self._options, **{name: found})
        print(f"{name}: {_as_typed(getattr(self._options, name))}")

    def _generate(self) -> None:
        (request,) = make_requests([self._prompt], self._options, self._words)
        story = None
        try:
            with user_errors("/past_context rebuild reads its end"):
                for story, piece in self._storyteller.generate_all([request], batch_size=1):
                    if story.n_tokens <= 1:
                        self._print_prompt(request)
                    print(printable(piece), end="", flush=True)
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, Stopped):
                raise
        print()
        if story is not None:
            print(f"[{_describe(story)}]", file=sys.stderr)
        self._options = replace(self._options, seed=min(self._options.seed + 1, 2**63 - 1))

    def _print_prompt(self, request: StoryRequest) -> None:
        shown = printable(request.prompt)
        print("… " * (len(shown) > _SHOWN) + shown[-_SHOWN:], end="", flush=True)
        length = len(self._storyteller.tokenizer.encode_prompt(request.prompt, request.words))
        context = self._storyteller.model.config.block_size
        if length > context:
            note = f"of {length:,} tokens the model sees the last {context}"
            print(f"\n[{note}]", file=sys.stderr)


def _as_typed(value: object) -> str:
    return "null" if value is None else str(value)


@cache
def _parser() -> Parser:
    parser = Parser(prog="slm", usage="slm predict")
    add_options(parser, SamplingOptions, hidden=_HIDDEN)
    return parser


def _describe(story: Story) -> str:
    """Seed, length and speed of a story, and how it ended if not by itself."""
    endings = {
        None: "interrupted",
        "max_new_tokens": f"cut there; /max_new_tokens {2 * story.request.options.max_new_tokens} "
        "allows more",
        "context": "the context is full; /past_context rebuild continues",
    }
    parts = [f"seed {story.request.options.seed}", f"{story.n_tokens} tokens"]
    if story.seconds:
        parts.append(f"{story.n_tokens / story.seconds:.0f} tokens/s")
    if story.ended in endings:
        parts.append(endings[story.ended])
    return ", ".join(parts)
