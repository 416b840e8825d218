"""A judge: another language model that grades stories, behind an OpenAI-compatible address.

The four grades are those of the TinyStories paper (Eldan & Li 2023, arXiv 2305.07759, section 3),
given there by GPT-4; the wording is this project's.
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm.errors import UserError
from slm.evaluation.generated import GeneratedStory
from slm.files import parse_json

GRADES = ("grammar", "creativity", "consistency", "plot")
_ATTEMPTS = 3
_INSTRUCTION = """\
You grade stories that a small program wrote for children of three or four years. Below is the \
beginning that it was given, and its continuation. Give four whole numbers from 1 (bad) to 10 \
(excellent): "grammar" (is the language correct?), "creativity" (is there an idea of its own?), \
"consistency" (does the continuation fit the beginning, and itself?), "plot" (does something \
happen, and does it make sense?). Grade the continuation only. Answer with nothing but a JSON \
object of these four keys."""


@dataclass(frozen=True)
class Judge:
    """The service and model that grade."""

    url: str
    """Base address of the service, including /v1."""
    model: str
    key: str | None = None
    """Its API key, if it requires one."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""

    def grade(self, story: GeneratedStory) -> dict[str, float] | None:
        """The four grades of a story; None if the answer cannot be understood.

        Raises:
            UserError: The service cannot be reached, or refuses.
        """
        return _read_grades(self._ask(story))

    def _ask(self, story: GeneratedStory) -> str:
        question = f"Beginning:\n{story.prompt}\n\nContinuation:\n{story.text}"
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": _INSTRUCTION},
                {"role": "user", "content": question},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _content(parse_json(answer.read()))
            except urllib.error.HTTPError as error:
                again = error.code == 429 or error.code >= 500
                what: str = f"{error.code} {error.reason}"
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                again, what = isinstance(reason, TimeoutError), str(error)
            if not again:
                break
            if attempt + 1 < _ATTEMPTS:
                time.sleep(2.0**attempt)
        raise UserError(
            f"the judge at {self.url} does not answer: {what}",
            "an OpenAI-compatible service, such as http://localhost:8000/v1",
            "check --judge.url and --judge.model, and the key in OPENAI_API_KEY; without "
            "--judge.url there is no judge",
        )


def grade_stories(judge: Judge, stories: Sequence[GeneratedStory]) -> dict[str, Any]:
    """Mean grades of some stories, and each story's.

    If the service stops half-way, or after Ctrl-C, earlier grades are kept: "stopped" says why.

    Raises:
        UserError: The service cannot be reached, refuses, or no answer can be understood.
    """
    each: list[dict[str, float] | None] = []
    stopped = None
    for story in stories:
        try:
            each.append(judge.grade(story))
        except (UserError, KeyboardInterrupt) as error:
            if not any(each):
                raise
            stopped = error.found if isinstance(error, UserError) else "interrupted"
            break
    graded = [grades for grades in each if grades]
    if not graded:
        raise UserError(
            f"no answer of {judge.model} contains the four grades",
            f"a JSON object with {', '.join(GRADES)}, from 1 to 10",
            "another --judge.model",
        )
    return {
        "model": judge.model,
        "stories": len(stories),
        "graded": len(graded),
        "stopped": stopped,
        "grades": {name: sum(one[name] for one in graded) / len(graded) for name in GRADES},
        "each": each,
    }


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("its answer is no chat completion") from error


def _read_grades(text: str) -> dict[str, float] | None:
    """The grades in an answer, with or without text around the object; None if there are none."""
    found = re.search(r"\{[^{}]*\}", text)
    try:
        answer = parse_json(found[0]) if found else {}
        grades = {name: float(answer[name]) for name in GRADES}
    except (ValueError, KeyError, TypeError):
        return None
    return grades if all(1 <= grade <= 10 for grade in grades.values()) else None
