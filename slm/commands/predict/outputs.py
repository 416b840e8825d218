"""Where stories go: the terminal, or a file of JSON lines."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from tqdm import tqdm

from slm.commands.parsing import output_path
from slm.errors import UserError
from slm.generation.storyteller import Story, StoryRequest


class Sink(Protocol):
    """Where stories go."""

    def take(self, story: Story, piece: str) -> None:
        """Takes the piece by which a story has grown; at its end, `story.ended` is set."""

    def close(self, finished: bool) -> None:
        """Called at the end, or when telling was interrupted."""


class InOrder:
    """Puts what many stories, told side by side, say into the order of the requests.

    Args:
        requests: The stories to come.
    """

    def __init__(self, requests: Iterable[StoryRequest]) -> None:
        self._waiting = iter(requests)
        self._current = next(self._waiting, None)
        self._kept: dict[StoryRequest, tuple[Story, list[str]]] = {}
        self._complete: set[StoryRequest] = set()

    def sort(self, story: Story, piece: str) -> list[tuple[Story, str, bool]]:
        """What can be said now.

        Returns:
            Stories, pieces of them, and whether each is the story's last. Nothing of a story is
            said before the one in front of it has ended.
        """
        said: list[tuple[Story, str, bool]] = []
        kept = self._kept.setdefault(story.request, (story, []))
        kept[1].append(piece)
        if story.ended is not None:  # of others it may be true before their last piece is here
            self._complete.add(story.request)
        while self._current is not None and self._current in self._kept:
            story, pieces = self._kept[self._current]
            last = self._current in self._complete
            said.append((story, "".join(pieces), last))
            pieces.clear()
            if not last:
                break
            del self._kept[self._current]
            self._complete.remove(self._current)
            self._current = next(self._waiting, None)
        return said


class Terminal:
    """Prints each story as it is told; of several, one behind the other.

    Args:
        requests: The stories to come.
    """

    def __init__(self, requests: Sequence[StoryRequest]) -> None:
        self._count = len(requests)
        self._order = InOrder(requests)
        self._told = 0
        self._open = False

    def take(self, story: Story, piece: str) -> None:
        """Prints what can be said now, as soon as it can, if somebody is watching."""
        for told, text, last in self._order.sort(story, piece):
            if not self._open:
                if self._count > 1:
                    print(f"{chr(10) if self._told else ''}--- story {self._told + 1} of ", end="")
                    print(self._count)
                print(told.request.prompt, end="")
            print(text, end="\n" if last else "", flush=sys.stdout.isatty())
            self._open = not last
            self._told += last

    def close(self, finished: bool) -> None:
        """Ends the line of a story that was interrupted."""
        if self._open:
            print(flush=True)
        if isinstance(sys.exception(), KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)


class JsonLines:
    """Writes a file with a JSON object for each story, in the order of the requests.

    Until the last one is written the file has `.part` behind its name. Where such a file is
    there already, from the same command, what it holds is kept.

    Args:
        path: The file.
        requests: The stories to come.
        facts: Written into each object: the checkpoint, and what else the stories depend on.

    Attributes:
        done: How many stories are there already.

    Raises:
        UserError: The file is there already, its folder is not, an unfinished one holds the
            stories of another command, or another process is writing it.
    """

    def __init__(self, path: Path, requests: Sequence[StoryRequest], facts: dict[str, Any]) -> None:
        path = output_path("--out", path)
        if path.exists():
            raise UserError(
                f"--out {path} is there already",
                "the name of a new file",
                "name another file, or remove that one first",
            )
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
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
            self.done = self._take_up() if self._part.exists() else 0
        except UserError:
            self._unlock()
            raise
        self._order = InOrder(requests[self.done :])
        self._file = self._part.open("a", encoding="utf-8", newline="\n")
        self._bar = tqdm(
            total=len(requests), initial=self.done, desc="telling", unit="story",
            disable=None,
        )  # fmt: skip

    def _identity(self, request: StoryRequest) -> dict[str, Any]:
        """What of a story's object is known before it is told, in JSON's types."""
        facts = {"prompt": request.prompt, "options": asdict(request.options), **self._facts}
        return dict(json.loads(json.dumps(facts)))

    def _take_up(self) -> int:
        """Counts the stories of an unfinished file, and cuts a half-written one off its end."""
        whole, _, _ = self._part.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        try:
            records = [json.loads(line) for line in lines]
            same = len(records) <= len(self._requests) and all(
                {key: record[key] for key in identity} == identity
                for record, request in zip(records, self._requests, strict=False)
                for identity in [self._identity(request)]
            )
        except (ValueError, LookupError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{self._part} holds stories of another command",
                "an unfinished file of this one: same prompts, options, checkpoint and weights",
                f"repeat that command to finish it, name another --out, or remove {self._part}",
            )
        with self._part.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
        if lines:
            print(f"Going on   behind {len(lines):,} stories in {self._part}", file=sys.stderr)
        return len(lines)

    def _unlock(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def take(self, story: Story, piece: str) -> None:
        """Writes the stories that have ended and have none missing in front of them."""
        for told, _, last in self._order.sort(story, piece):
            if last:
                record = self._identity(told.request) | {
                    "story": told.request.prompt + told.text,
                    "tokens": told.n_tokens,
                    "ended": told.ended,
                    "seconds": round(told.seconds, 3),
                    "log_probability": round(told.log_probability, 3),
                }
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._file.flush()
                self.done += 1
                self._bar.update()

    def close(self, finished: bool) -> None:
        """Gives a finished file its name; says how to go on with an unfinished one."""
        self._bar.close()
        self._file.close()
        self._unlock()
        if finished:
            self._part.rename(self._path)
            print(f"{self.done:,} stories written to {self._path}", file=sys.stderr)
        else:
            print(
                f"Interrupted: {self.done:,} of {len(self._requests):,} stories are in "
                f"{self._part}; the same command goes on from there.",
                file=sys.stderr,
            )
