"""Options as dataclasses: a field's name, type, default and docstring are an option's."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.configs import read_config
from slm.commands.parsing.errors import ParsingErrors
from slm.errors import UserError, user_errors
from slm.verbs import VERBS

Options = TypeVar("Options")

FIT_SECTIONS = frozenset(
    {
        "model", "data", "trainer", "seed_everything", "val_interval", "save_interval", "ckpt_path",
        "budget", "report", "check_device", "on_save_error",
    }
)  # fmt: skip
"""What a config for `fit` contains; other verbs read their own options from it."""


@dataclass(frozen=True)
class RootOptions:
    """Where runs are."""

    default_root_dir: str | None = None
    """The folder that contains lightning_logs; null means the current one."""

    @property
    def logs(self) -> Path:
        """The folder of all runs."""
        return Path(self.default_root_dir or ".").expanduser() / "lightning_logs"


class Parser(ParsingErrors, jsonargparse.ArgumentParser):
    """The parser of the verbs that need no Trainer."""


def positional(nargs: str) -> Any:
    """A field that is given by position: "?" for one at most, "*" for any number."""
    return field(default=() if nargs == "*" else None, metadata={"nargs": nargs})


def inline(default: Any, *hidden: str) -> Any:
    """A field whose own fields become options without a prefix, apart from hidden ones."""
    return field(default=default, metadata={"inline": True, "hidden": hidden})


def parse(
    verb: str,
    options: type[Options],
    arguments: Arguments,
    usage: str,
    ignored: frozenset[str] | None = None,
) -> Options:
    """Parses a command line into a dataclass.

    A field that is a dataclass becomes a section of options, a tuple of texts an option that can
    be given several times. `ignored` names sections and options of config files that decide nothing
    here; without it `--config` is an option like any other.
    """
    parser = Parser(
        prog="slm", usage=usage, description=VERBS[verb].description, allow_abbrev=False
    )
    repeated = add_options(parser, options)
    if ignored is not None:
        arguments = arguments.with_configs_expanded(
            lambda path: _options_of_config(verb, path, parser, ignored, repeated)
        )
    namespace = parser.parse_args(list(arguments))
    command = re.split("[^a-z -]", usage)[0]
    with user_errors(f"{command}--help explains it"):
        return _build(options, namespace)


def add_options(
    parser: jsonargparse.ArgumentParser,
    options: type[Any],
    prefix: str = "",
    hidden: tuple[str, ...] = (),
) -> set[str]:
    """Adds an option for each field; returns the names of those that can be repeated."""
    help_texts = {
        entry.arg_name: entry.description
        for kind in reversed(options.__mro__)
        if is_dataclass(kind)
        for entry in docstring_parser.parse_from_object(kind).params
    }
    hints, repeated = get_type_hints(options), set()
    for each in fields(options):
        if each.name in hidden:
            continue
        name, kind, text = prefix + each.name, hints[each.name], help_texts.get(each.name)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            inner = "" if each.metadata.get("inline") else f"{name}."
            repeated |= add_options(parser, kind, inner, each.metadata.get("hidden", ()))
        elif "nargs" in each.metadata:
            parser.add_argument(name, type=str, nargs=each.metadata["nargs"], help=text)
        elif kind == tuple[str, ...]:
            parser.add_argument(f"--{name}", action="append", type=str, help=text)
            repeated.add(name)
        elif kind is bool and each.metadata.get("flag"):
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            factory = each.default_factory
            default = factory() if callable(factory) else each.default
            if item := _item_of_list(kind):
                kind = kind | item  # a single value is a list of one
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    return repeated


def _build(options: type[Options], namespace: jsonargparse.Namespace, prefix: str = "") -> Options:
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    for each in fields(options):  # type: ignore[arg-type]
        name, kind = prefix + each.name, hints[each.name]
        if is_dataclass(kind):
            assert isinstance(kind, type)
            values[each.name] = _build(
                kind, namespace, "" if each.metadata.get("inline") else f"{name}."
            )
        elif name in namespace:
            value = namespace[name]
            if _item_of_list(kind) and value is not None and not isinstance(value, list):
                value = [value]
            values[each.name] = tuple(value or ()) if kind == tuple[str, ...] else value
    return options(**values)


def _item_of_list(kind: Any) -> Any:
    """The type of the items of `list[...]` or `list[...] | None`; None for other types."""
    lists = [each for each in (kind, *get_args(kind)) if get_origin(each) is list]
    item = get_args(lists[0])[0] if lists else None
    return None if kind not in lists and item in get_args(kind) else item


def _options_of_config(
    verb: str, path: str, parser: Parser, ignored: frozenset[str], repeated: set[str]
) -> list[str]:
    """The options of a config file as arguments of a verb."""
    defaults = parser.get_defaults()
    names = {name.removeprefix("--") for name in parser.option_names()} - {"config", "help"}
    known = {name: defaults.get(name) for name in names}
    arguments: list[str] = []
    given: dict[str, Any] = {}
    for name, value in flatten(read_config(path)).items():
        if name not in known:
            sections = {name[:end] for end, sign in enumerate(f"{name}.") if sign == "."}
            empty = value is None and any(option.startswith(f"{name}.") for option in known)
            if not (empty or sections & ignored):
                raise UserError(
                    f"--config {path}: there is no option --{name}",
                    f"options of `slm {verb}`, or a config for `slm fit`",
                    f"remove it; slm {verb} --help lists the options",
                )
        elif value is not None or known[name] is not None:
            several = isinstance(value, list) and name in repeated
            if name not in repeated:
                given[name] = value
            for each in value if several else [value]:
                text = each if isinstance(each, str) else json.dumps(each)
                arguments.append(f"--{name}={text}")
    parser.parse_object(given, defaults=False)  # the same type check as in `fit`
    return arguments


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"gpt": {"n_layer": 6}} becomes {"gpt.n_layer": 6}."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
