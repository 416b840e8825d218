"""jsonargparse with errors that say what to do."""

import contextlib
import difflib
import errno
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse

from slm.errors import UserError
from slm.files import free_space
from slm.verbs import VERBS


class ParsingErrors:
    """Mixed into a parser: what it complains of becomes a UserError that says what to do."""

    usage: str | None
    _actions: list[Any]

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Called by jsonargparse for everything that is wrong on the command line or in a file.

        Raises:
            UserError: Always.
        """
        verb = self.usage.split()[1] if self.usage else (self._verb(message) or "fit")
        refused = re.search(r"does not accept option '([\w.]+)'", message)
        if unknown := refused or re.search(r"unrecognized arguments: (.*)", message):
            first = (unknown[1].split() or ["''"])[0]  # an empty word
            word = ("--" if refused else "") + first.split("=")[0]
            if not word.startswith("-"):
                raise UserError(
                    f"a word that belongs to no option: {word}",
                    f"options of `slm {verb}`, each with its value",
                    f'--prompt "{word}"' if verb == "predict" else f"slm {verb} --help lists them",
                )
            known = [name for name in self.option_names() if not name.startswith("--print_")]
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
            raise UserError(
                f"there is no option {word}",
                f"an option of `slm {verb}`",
                (f"{close[0]}, perhaps? " if close else "") + f"slm {verb} --help lists them",
            )
        text = " ".join(message.split())
        if lone := re.search(r"argument (--[\w.]+).*: expected one argument", text):
            raise UserError(
                f"{lone[1]} without a value",
                "one, such as true for what is true or false",
                f"slm {verb} --help explains the option",
            )
        key = re.search(r'Parser key "([^"]+)": ?(.*)', text)
        if key and (value := re.search(r"Expected an? (.*?)\. Got value: (.*)", key[2])):
            raise UserError(
                f"--{key[1]} is {value[2]}",
                re.sub(r"<class '(\w+)'>", r"\1", value[1].replace("typing.", "")),
                f"slm {verb} --help explains the option",
            )
        if key and (value := re.search(r"Union subtypes .*Given value: (.*)", key[2])):
            kinds = re.findall(r"- Expected an? (.*?)(?= - Expected| Given value type)", key[2])
            expected = " or ".join(re.sub(r"<class '(\w+)'>", r"\1", kind) for kind in kinds)
            raise UserError(
                f"--{key[1]} is {value[1]}",
                expected.replace("typing.", "").replace("NoneType", "null"),
                f"slm {verb} --help explains the option",
            )
        raise UserError(
            f"the options cannot be understood: {text}",
            "options and config files that fit together",
            f"slm {verb} --help lists the options and their types",
        )

    @staticmethod
    def _verb(message: str) -> str | None:
        """The verb that a message of the main parser is about."""
        found = re.search(r"[Ss]ubcommand '(\w+)'", message)
        return found[1] if found else None

    def option_names(self) -> list[str]:
        """Every option string that this parser or its subcommand's knows."""
        names: list[str] = []
        for action in self._actions:
            names += [name for name in action.option_strings if name.startswith("--")]
            for parser in (action.choices if isinstance(action.choices, dict) else {}).values():
                names += parser.option_names()
        return names


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def os_errors_explained() -> Iterator[None]:
    """Rounds what the operating system refuses into a UserError; a reader that left, apart."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        path = Path(str(error.filename)) if isinstance(error.filename, str) else Path()
        raise UserError(
            f"{error}; {free_space(path)}" if error.errno in _FULL else str(error),
            "files that can be read and written",
            "check the path, its permissions and the free space",
        ) from error


@contextlib.contextmanager
def out_of_memory_explained(remedy: str) -> Iterator[None]:
    """Rounds a device that is out of memory into a UserError.

    Args:
        remedy: What to do about it.
    """
    from slm.training.memory import is_out_of_memory  # torch takes a second to load

    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            str(error).split(". ")[0], "a batch that fits into the device's memory", remedy
        ) from error


@contextlib.contextmanager
def compiling_explained() -> Iterator[None]:
    """Rounds errors of torch.compile into a UserError, and hides two warnings on GPUs."""
    from torch._dynamo.exc import TorchDynamoException  # a second that only compiling may cost

    try:
        with warnings.catch_warnings():
            for message in ("TensorFloat32 tensor cores", "The CUDA Graph is empty"):
                warnings.filterwarnings("ignore", message)
            yield
    except TorchDynamoException as error:
        raise UserError(
            "torch.compile does not work on this machine "
            f"({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]})",
            "a C++ compiler, or on a GPU Triton",
            "leave out --compile",
        ) from error


def output_path(option: str, file: str | Path) -> Path:
    """The path of a file that is going to be written.

    Args:
        option: Which option names it, with its dashes.
        file: The name.

    Raises:
        UserError: There is no folder for it, or it is a folder itself.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder", "a file", f"{option} {path / 'FILE'}")
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"{option} {path}: there is no folder {path.parent}",
            "a folder that exists",
            f"mkdir -p {path.parent}",
        )
    return path


class QuickParser(ParsingErrors, jsonargparse.ArgumentParser):
    """The parser of the verbs that need no Trainer."""


def quick_parser(verb: str, usage: str) -> QuickParser:
    """An empty parser for a verb; docstrings of option classes become the help of their options.

    Args:
        verb: Its name in `slm.verbs`.
        usage: The line behind "usage:".
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    what = VERBS[verb]
    return QuickParser(
        prog="slm", usage=usage, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )
