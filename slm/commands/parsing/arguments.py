"""The arguments of a command line. The only file that reads argv."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slm.commands.parsing.configs import find_config, read_config

NULL = (None, "null", "None")
"""An option that is not given, and how `null` is spelt on a command line."""
_CONFIG = ("-c", "--config")
_NAME = re.compile("-[chV](=|$)|--([A-Za-z]|$)")
_OPTION = re.compile(r"--[A-Za-z][\w.-]*|-c")


class Arguments:
    """A command's arguments, by default this process's: `--name value` or `--name=value`."""

    def __init__(self, arguments: Sequence[str] | None = None) -> None:
        self._arguments: list[str] = []
        for argument in sys.argv[1:] if arguments is None else arguments:
            before = self._arguments[-1] if self._arguments else ""
            if _OPTION.fullmatch(before) and argument[:1] == "-" and not _NAME.match(argument):
                self._arguments[-1] = f"{before}={argument}"  # argparse would take it for an option
            else:
                self._arguments.append(argument)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def take_first(self) -> str | None:
        """Removes and returns the first argument; None if there is none."""
        return self._arguments.pop(0) if self._arguments else None

    def get(self, name: str) -> str | None:
        """The value of an option, the last one if there are several; None if it is not given."""
        found = self._find(name)
        return found[-1][2] if found else None

    def take(self, name: str) -> str | None:
        """As `get`, and removes the option."""
        value = self.get(name)
        self._remove(name)
        return value

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that are given, with their dashes; `-c` counts as `--config`."""
        names = (argument.partition("=")[0] for argument in self._arguments)
        return frozenset("--config" if name == "-c" else name for name in names)

    @property
    def configs(self) -> list[str]:
        """The values of `--config`, in order."""
        return [value or "" for _, _, value in self._find(*_CONFIG)]

    def with_config(self, config: str) -> "Arguments":
        """A copy with a config in front, which other configs and options override."""
        return Arguments([f"--config={config}", *self])

    def with_configs_expanded(self, expand: Callable[[str], list[str]]) -> "Arguments":
        """A copy in which each config is replaced by what `expand` makes of its path.

        The result is at the front, so that an option overrides a config wherever it is given.
        """
        expanded = [argument for name in self.configs for argument in expand(find_config(name))]
        rest = Arguments(list(self))
        rest._remove(*_CONFIG)
        return Arguments([*expanded, *rest])

    def with_configs_found(self) -> "Arguments":
        """A copy with packaged configs replaced by their paths; checks that all can be read."""

        def check(path: str) -> list[str]:
            read_config(path)
            return [f"--config={path}"]

        return self.with_configs_expanded(check)

    def trainer_option(self, name: str) -> Any:
        """`--trainer.NAME` from the command line, or else from the last config that has it."""
        value: Any = self.get(f"--trainer.{name}")
        for config in self.configs if value is None else []:
            section = read_config(config).get("trainer")
            value = section.get(name, value) if isinstance(section, dict) else value
        return None if value in NULL else value

    def _find(self, *names: str) -> list[tuple[int, int, str | None]]:
        """Start, stop and value of each option that has one of these names."""
        found: list[tuple[int, int, str | None]] = []
        for start, argument in enumerate(self._arguments):
            name, equals, value = argument.partition("=")
            if name in names and equals:
                found.append((start, start + 1, value))
            elif name in names:
                following = self._arguments[start + 1 : start + 2]
                found.append((start, start + 2, following[0] if following else None))
        return found

    def _remove(self, *names: str) -> None:
        for start, stop, _ in reversed(self._find(*names)):
            del self._arguments[start:stop]
