"""The verb `bench`: measures speed."""

import difflib
import importlib

from slm.commands.parsing.arguments import Arguments
from slm.errors import UserError

BENCHES = {"generate": "the speed of generation", "train": "the speed of training"}


def bench(arguments: Arguments) -> int:
    """Measures the speed of generation or training."""
    named = arguments.take_first()
    if named in ("-h", "--help"):
        print("usage: slm bench generate|train [--option value ...]\n")
        for name, what in BENCHES.items():
            print(f"  slm bench {name + ' --help':17}  {what}")
        return 0
    if named not in BENCHES:
        missing = named is None or named.startswith("-")
        close = difflib.get_close_matches(str(named), BENCHES, n=1)
        raise UserError(
            "slm bench without what to measure" if missing else f"slm bench {named}",
            "generate or train",
            f"slm bench {close[0] if close else 'generate'} --help",
        )
    module = importlib.import_module(f"slm.commands.bench.{named}")
    return int(module.run(arguments))
