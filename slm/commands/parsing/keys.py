"""API keys from the environment: on the command line, other users could see them."""

import os

from slm.errors import UserError


def read_key(variable: str) -> str | None:
    """The key in an environment variable; None if there is none.

    Raises:
        UserError: It cannot be sent in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise UserError(
            f"{variable} contains characters that cannot be sent",
            "one line of letters and digits",
            "set it again; it may contain a line break",
        )
    return key or None
