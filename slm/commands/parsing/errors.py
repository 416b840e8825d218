"""Errors reworded to say what to do: of jsonargparse, of the system, of torch and Lightning."""

import difflib
import errno
import os
import re
from pathlib import Path
from typing import Any

from slm.errors import UserError, is_out_of_memory
from slm.files import free_space, quoted
from slm.verbs import VERBS

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def explain(error: Exception, verb: str | None) -> UserError | None:
    """What the user can do about an error; None if nothing, and it is a bug.

    Errors of torch and Lightning are recognised by name: neither is loaded here.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        path = Path(error.filename) if isinstance(error.filename, str) else Path()
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            if (folder := os.environ.get(name)) and path.is_relative_to(folder):
                return UserError(
                    f"cannot use the compiler's cache folder {name}={folder}: {error.strerror}",
                    "a writable folder",
                    f"unset {name}, or set it to such a folder",
                )
        return UserError(
            f"{error}; {free_space(path)}"
            if error.filename and error.errno in _DISK_FULL
            else str(error),
            "files that can be read and written",
            "check the path, its permissions and the free space",
        )
    if is_out_of_memory(error):
        return UserError(
            str(error).split(". ")[0],
            "a batch that fits into the device's memory",
            VERBS[str(verb)].memory_remedy,
        )
    if "TorchDynamoException" in kinds:
        return UserError(
            f"torch.compile does not work on this machine ({type(error).__name__}: {text[:200]})",
            "a C++ compiler, or on a GPU Triton",
            "do not compile: --compile false, for fit --model.compile false",
        )
    missing = isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("slm")
    if missing or "MisconfigurationException" in kinds:
        return UserError(
            text,
            "options that fit this machine, its packages and each other",
            f"slm {verb} --help lists them; without any, the machine's best device is used",
        )
    return None


class ParsingErrors:
    """Mixed into a parser: its errors become UserErrors that say what to do."""

    usage: str | None
    _actions: list[Any]

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Called by jsonargparse for every error on the command line or in a file."""
        subcommand = re.search(r"[Ss]ubcommand '(\w+)'", message)
        verb = self.usage.split()[1] if self.usage else (subcommand[1] if subcommand else "fit")
        text = " ".join(message.split())
        raise (
            self._unknown(message, verb)
            or _wrong_value(text, f"slm {verb} --help explains the option")
            or UserError(
                f"the options cannot be understood: {text}",
                "options and config files that fit together",
                f"slm {verb} --help lists the options and their types",
            )
        )

    def _unknown(self, message: str, verb: str) -> UserError | None:
        """The error for an option that does not exist."""
        refused = re.search(r"does not accept option '([\w.]+)'", message)
        found = refused or re.search(r"unrecognized arguments: (.*)", message)
        if not found:
            return None
        first = (found[1].split() or ["''"])[0]  # an empty argument
        option = ("--" if refused else "") + first.split("=")[0]
        lists = f"slm {verb} --help lists them"
        if not option.startswith("-"):
            return UserError(
                f"an argument that belongs to no option: {option}",
                f"options of `slm {verb}`, each with its value",
                f"--prompt {quoted(option)}" if verb == "predict" else lists,
            )
        known = [name for name in self.option_names() if not name.startswith("--print_")]
        close = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
        return UserError(
            f"there is no option {option}",
            f"an option of `slm {verb}`",
            (f"{close[0]}, perhaps? " if close else "") + lists,
        )

    def option_names(self) -> list[str]:
        """Every option that this parser or its subcommand's knows."""
        names: list[str] = []
        for action in self._actions:
            names += [name for name in action.option_strings if name.startswith("--")]
            for parser in (action.choices if isinstance(action.choices, dict) else {}).values():
                names += parser.option_names()
        return names


def _wrong_value(text: str, remedy: str) -> UserError | None:
    """The error for a value that is missing or of the wrong type."""
    if lone := re.search(r"argument (--[\w.]+).*: expected one argument", text):
        expected = "one, such as true for what is true or false"
        dash = f"; a value may begin with two dashes after an equals sign: {lone[1]}=--VALUE"
        return UserError(f"{lone[1]} without a value", expected, remedy + dash)
    key = re.search(r'Parser key "([^"]+)": ?(.*)', text)
    if not key:
        return None
    if inner := re.search("- the options cannot be understood: (.*?) expected:", key[2]):
        kind = re.search(r"class_path='([\w.]+)'", key[2])
        found = f"--{key[1]} {kind[1] if kind else ''}".rstrip()
        if missing := re.search("arguments are required: (\\w+)", inner[1]):
            add = f"--{key[1]}.{missing[1]} VALUE"
            return UserError(
                f"{found} without {missing[1]}", "its required arguments", f"add {add}"
            )
        return UserError(f"{found}: {inner[1]}", "arguments that this class accepts", remedy)
    if value := re.search(r"Expected an? (.*?)\. Got value: (.*)", key[2]):
        found, expected = value[2], value[1]
    elif value := re.search(r"Union subtypes .*Given value: (.*)", key[2]):
        kinds = re.findall(r"- Expected an? (.*?)(?= - Expected| Given value type)", key[2])
        found, expected = value[1], " or ".join(kinds)
    else:
        return None
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected.replace("typing.", ""))
    return UserError(f"--{key[1]} is {found}", expected.replace("NoneType", "null"), remedy)


def output_path(option: str, file: str | Path | None) -> Path | None:
    """The path of a file that will be written and that `option` names; None if none is named."""
    if file is None:
        return None
    path = Path(file).expanduser()
    if path.is_dir():
        raise UserError(
            f"{option} {path} is a folder", "a file", f"{option} {quoted(path / 'FILE')}"
        )
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"{option} {path}: there is no folder {path.parent}",
            "a folder that exists",
            f"mkdir -p {quoted(path.parent)}",
        )
    return path
