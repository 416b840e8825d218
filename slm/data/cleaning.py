"""What can be done to stories before they are encoded. Nothing is, unless asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from slm.errors import UserError


@dataclass(frozen=True)
class Cleaning:
    """What to do to stories before they are encoded; nothing by default."""

    drop_empty: bool = False
    """Leave out stories of nothing but white space."""
    drop_duplicates: bool = False
    """Leave out repetitions of a story to the letter, and training stories that are in the
    validation split too."""
    repair_mojibake: bool = False
    """Repair text that was decoded wrongly, "donâ€™t" for "don’t"; needs the extra `clean`."""

    def suffix(self) -> str:
        """What is added to the name of a folder of such data."""
        words = {
            "-repaired": self.repair_mojibake,
            "-nonempty": self.drop_empty,
            "-unique": self.drop_duplicates,
        }
        return "".join(word for word, chosen in words.items() if chosen)

    def make_repair(self) -> Callable[[str], str]:
        """The function that repairs a story, or leaves it as it is if that is not asked for.

        Raises:
            UserError: The package ftfy is missing.
        """
        if not self.repair_mojibake:
            return lambda story: story
        try:
            from ftfy import fix_encoding
        except ImportError as error:
            raise UserError(
                "--data.clean.repair_mojibake true without the package ftfy",
                "ftfy, which knows how text gets garbled",
                "pip install ftfy",
            ) from error
        return fix_encoding
