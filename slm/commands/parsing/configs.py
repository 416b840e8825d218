"""Config files: those that come with the package, found by name, and the user's."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.errors import UserError

if TYPE_CHECKING:  # torch takes a second to load
    from slm.model import GPTConfig


def find_config(name: str) -> str:
    """The path of a config: of that file if it exists, else of the packaged config of that name."""
    if not name:
        raise UserError(
            "--config without a file",
            "a YAML file, or a config's name",
            "--config configs/small.yaml",
        )
    if Path(name).is_file():
        return name
    package = Path(__file__).parents[2]
    # In a wheel the configs are inside the package, in a checkout beside it.
    folders = (package / "configs", package.parent / "configs")
    packaged = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    stem = Path(name).stem
    if stem in packaged and Path(name).parent in (Path(), Path("configs")):
        return str(packaged[stem])
    raise UserError(
        f"--config {name} {'is a folder' if Path(name).is_dir() else 'does not exist'}",
        f"a YAML file, or one of {', '.join(sorted(packaged))}",
        f"--config configs/{(difflib.get_close_matches(stem, packaged, n=1) or ['small'])[0]}.yaml",
    )


def read_config(path: str | Path) -> dict[str, Any]:
    """A config file as nested dictionaries."""
    import yaml  # not needed for `slm --help`

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if config is None or isinstance(config, dict):
            return config or {}
        error: Exception | str = f"it contains {type(config).__name__}"
    except (OSError, yaml.YAMLError, ValueError) as problem:
        error = problem
    raise UserError(
        f"--config {path} cannot be read: {' '.join(str(error).split())}",
        "a YAML file with sections",
        "--config configs/small.yaml",
    )


def model_of_config(path: str | Path) -> "GPTConfig":
    """The model of a config."""
    from slm.model import GPTConfig

    try:
        return GPTConfig(**read_config(path)["model"]["gpt"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"--config {path} names no model: {' '.join(str(error).split())}",
            "a config with a section model.gpt",
            "--config configs/small.yaml",
        ) from error
