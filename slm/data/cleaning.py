"""Optional cleaning of stories before they are encoded."""

from collections.abc import Callable
from dataclasses import dataclass

from slm.errors import UserError


@dataclass(frozen=True)
class Cleaning:
    """What to do to stories before they are encoded; nothing by default."""

    drop_empty: bool = False
    """Leave out stories of nothing but white space."""
    drop_duplicates: bool = False
    """Leave out exact repetitions of a story, and training stories that are also in the validation
    split."""
    repair_mojibake: bool = False
    """Repair wrongly decoded text, "donâ€™t" for "don’t"; needs the extra `clean`."""

    def suffix(self) -> str:
        """The suffix of the name of a folder of such data."""
        words = {
            "-repaired": self.repair_mojibake,
            "-nonempty": self.drop_empty,
            "-unique": self.drop_duplicates,
        }
        return "".join(word for word, chosen in words.items() if chosen)

    def make_repair(self) -> Callable[[str], str]:
        """A function that repairs a story, or returns it unchanged if repairing is off.

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
