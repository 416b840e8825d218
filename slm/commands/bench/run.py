"""The verb `bench`: measures speed."""

import difflib
import json
from collections.abc import Callable, Sequence
from typing import Any

from slm.commands.lookup import option
from slm.commands.parsing import os_errors_explained, output_path
from slm.errors import UserError


def _generate(words: Sequence[str]) -> dict[str, Any]:
    from slm.commands.bench.generate import bench_generate

    return bench_generate(words)


def _train(words: Sequence[str]) -> dict[str, Any]:
    from slm.commands.bench.train import bench_train

    return bench_train(words)


BENCHES: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "generate": _generate,
    "train": _train,
}


@os_errors_explained()
def run_bench(words: Sequence[str]) -> int:
    """Measures how fast stories are told, or models trained.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    if {"-h", "--help"} & set(words[:1]):
        print("usage: slm bench generate|train [--option value ...]\n")
        print("  slm bench generate --help   how fast stories are told")
        print("  slm bench train --help      how fast a model is trained")
        return 0
    named = words[0] if words and not words[0].startswith("-") else ""
    if named not in BENCHES:
        close = difflib.get_close_matches(named, BENCHES, n=1)
        raise UserError(
            f"slm bench {named}" if named else "slm bench without what to measure",
            "generate (telling stories) or train",
            f"slm bench {close[0] if close else 'generate'} --help",
        )
    file = option(words, "--json")
    path = None if file in (None, "null") else output_path("--json", str(file))
    facts = BENCHES[named](words[1:])
    if path:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0
