"""The option parser: jsonargparse with errors that say what to do."""

import difflib
import re
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from slm.errors import UserError


class StoryParser(LightningArgumentParser):
    """Turns the parser's complaints into UserErrors."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Called by jsonargparse for everything that is wrong on the command line or in a file.

        Raises:
            UserError: Always.
        """
        verb = (self.prog or "slm").split()[-1]
        if unknown := re.search(r"unrecognized arguments: (.*)", message):
            word = unknown[1].split()[0].split("=")[0]
            close = difflib.get_close_matches(word, self.option_names(), n=1, cutoff=0.5)
            raise UserError(
                f"there is no option {word}",
                f"an option of `slm {verb}`",
                (f"{close[0]}, perhaps? " if close else "") + f"slm {verb} --help lists them",
            )
        text = " ".join(message.split())
        key = re.search(r'Parser key "([^"]+)": ?(.*)', text)
        if key and (value := re.search(r"Expected an? (.*?)\. Got value: (.*)", key[2])):
            raise UserError(
                f"--{key[1]} is {value[2]}",
                re.sub(r"<class '(\w+)'>", r"\1", value[1].replace("typing.", "")),
                f"slm {verb} --help explains the option",
            )
        raise UserError(
            f"the options cannot be understood: {text}",
            "options and config files that fit together",
            f"slm {verb} --help lists the options and their types",
        )

    def option_names(self) -> list[str]:
        """Every option string that this parser or its subcommand's knows."""
        names: list[str] = []
        for action in self._actions:
            names += [name for name in action.option_strings if name.startswith("--")]
            for parser in (action.choices if isinstance(action.choices, dict) else {}).values():
                names += parser.option_names()
        return names
