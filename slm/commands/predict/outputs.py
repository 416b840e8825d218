"""Outputs of `predict`: the terminal, or a file of JSON lines."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from slm.commands.parsing.errors import output_path
from slm.errors import UserError
from slm.files import parse_json
from slm.generation.storyteller import Story, StoryRequest
from slm.printable import printable


class InOrder:
    """Puts the pieces of stories that are generated together into the order of the requests."""

    def __init__(self, requests: Iterable[StoryRequest]) -> None:
        self._waiting = iter(requests)
        self._current = next(self._waiting, None)
        self._kept: dict[StoryRequest, tuple[Story, str, bool]] = {}

    def add(self, story: Story, piece: str) -> list[tuple[Story, str, bool]]:
        """Adds a piece; returns what can be written now: stories, pieces, whether each is the last.

        Nothing of a story is returned before the previous one has ended.
        """
        _, before, _ = self._kept.get(story.request, (story, "", False))
        # Only this story's piece: others may have ended before their last piece arrives.
        self._kept[story.request] = story, before + piece, story.ended is not None
        ready: list[tuple[Story, str, bool]] = []
        while self._current is not None and self._current in self._kept:
            ready.append(self._kept.pop(self._current))
            if not ready[-1][2]:
                break
            self._current = next(self._waiting, None)
        return ready


class Terminal:
    """Prints stories as they are generated, one after the other."""

    def __init__(self, requests: Sequence[StoryRequest]) -> None:
        self._count = len(requests)
        self._order = InOrder(requests)
        self._printed = 0
        self._open = False

    def write(self, story: Story, piece: str) -> None:
        """Prints what can be printed now; on a terminal, at once."""
        for ready, text, last in self._order.add(story, piece):
            if not self._open:
                if self._count > 1:
                    gap = "\n" if self._printed else ""
                    print(f"{gap}--- story {self._printed + 1} of {self._count}")
                print(printable(ready.request.prompt), end="")
            print(printable(text), end="\n" if last else "", flush=sys.stdout.isatty())
            self._open = not last
            self._printed += last

    def close(self, finished: bool) -> None:
        """Ends the line of a story that was interrupted."""
        if self._open:
            print(flush=True)
        if isinstance(sys.exception(), KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)


class JsonLines:
    """Writes a file with a JSON object for each story and the facts it depends on, in order.

    Until the last one is written, `.part` is appended to the file's name. If such a file exists,
    from the same command, its stories are kept.

    Attributes:
        done: How many stories are complete.
    """

    def __init__(self, path: str, requests: Sequence[StoryRequest], facts: dict[str, Any]) -> None:
        target = output_path("--out", path)
        assert target is not None
        if target.exists():
            raise UserError(
                f"--out {target} exists already",
                "the name of a new file",
                "name another file, or remove that one first",
            )
        self._path = target
        self._part = target.with_name(f"{target.name}.part")
        self._lock = FileLock(f"{self._part}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process is writing {self._part}",
                "one process for each file",
                "wait for it, or name another --out",
            ) from error
        self._requests = requests
        self._facts = facts
        try:
            self.done = self._resume() if self._part.exists() else 0
        except UserError:
            self._unlock()
            raise
        self._order = InOrder(requests[self.done :])
        self._file = self._part.open("a", encoding="utf-8", newline="\n")
        self._bar = tqdm(
            total=len(requests), initial=self.done, desc="generating", unit="story",
            disable=None,
        )  # fmt: skip

    def _identity(self, request: StoryRequest) -> dict[str, Any]:
        """The part of a story's object that is known before it is generated, in JSON's types."""
        facts = {
            "prompt": request.prompt,
            "words": request.words,
            "options": asdict(request.options),
            **self._facts,
        }
        return dict(json.loads(json.dumps(facts)))

    def _resume(self) -> int:
        """Counts the stories of an unfinished file, and removes an incomplete one from its end."""
        whole, _, _ = self._part.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        try:
            records = [parse_json(line) for line in lines]
            same = len(records) <= len(self._requests) and all(
                {key: record[key] for key in identity} == identity
                for record, request in zip(records, self._requests, strict=False)
                for identity in [self._identity(request)]
            )
        except (ValueError, LookupError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{self._part} contains stories of another command",
                "an unfinished file of this one: same prompts, options, checkpoint and weights",
                f"repeat that command to finish it, name another --out, or remove {self._part}",
            )
        with self._part.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
        if lines:
            print(f"Continuing after {len(lines):,} stories in {self._part}", file=sys.stderr)
        return len(lines)

    def _unlock(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def write(self, story: Story, piece: str) -> None:
        """Writes the stories that have ended, as far as all earlier ones have."""
        for ready, _, last in self._order.add(story, piece):
            if last:
                record = self._identity(ready.request) | {
                    "story": ready.request.prompt + ready.text,
                    "tokens": ready.n_tokens,
                    "ended": ready.ended,
                    "seconds": round(ready.seconds, 3),
                    "log_probability": round(ready.log_probability, 3),
                }
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._file.flush()
                self.done += 1
                self._bar.update()

    def close(self, finished: bool) -> None:
        """Renames a finished file; prints how to continue an unfinished one."""
        self._bar.close()
        self._file.close()
        self._unlock()
        if finished:
            self._part.rename(self._path)
            print(f"{self.done:,} stories written to {self._path}", file=sys.stderr)
        else:
            print(
                f"Interrupted: {self.done:,} of {len(self._requests):,} stories are in "
                f"{self._part}; the same command continues from there.",
                file=sys.stderr,
            )
