"""Optional cleaning of stories before they are encoded."""

from collections.abc import Callable
from dataclasses import dataclass

from slm.errors import UserError


@dataclass(frozen=True)
class Cleaning:
    """How to clean stories before they are encoded; by default not at all."""

    drop_empty: bool = False
    """Leave out stories of nothing but white space."""
    drop_duplicates: bool = False
    """Leave out exact repetitions of a story, and training stories that are also in the validation
    split."""
    repair_mojibake: bool = False
    """Repair wrongly decoded text, "donâ€™t" for "don’t"; needs the extra `clean`."""

    def suffix(self) -> str:
        """The suffix of the folder's name: `-repaired`, `-nonempty`, `-unique`, or several."""
        return (
            "-repaired" * self.repair_mojibake
            + "-nonempty" * self.drop_empty
            + "-unique" * self.drop_duplicates
        )

    def make_repair(self) -> Callable[[str], str]:
        """A function that repairs a story; the identity if repairing is off.

        Raises:
            UserError: The package ftfy is missing.
        """
        if not self.repair_mojibake:
            return lambda story: story
        try:
            from ftfy import fix_encoding
        except ImportError as error:
            raise UserError(
                "--data.clean.repair_mojibake true, but the package ftfy is not installed",
                "ftfy, which detects and repairs mojibake",
                "pip install ftfy",
            ) from error
        return fix_encoding
