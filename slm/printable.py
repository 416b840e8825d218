"""Text that is safe to print: control characters are escaped."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""Characters that move the cursor, clear a terminal or change the direction of what follows."""


def printable(text: str) -> str:
    r"""A text with its control characters as escapes, such as `\x1b`; \n and \t remain."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
