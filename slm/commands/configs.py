"""The configs that come with the package, found by their names."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slm.errors import UserError

if TYPE_CHECKING:  # torch takes a second to load
    from slm.model import GPTConfig


def find_configs(words: Sequence[str]) -> list[str]:
    """Replaces the names of configs that come with the package by their paths.

    `--config configs/small.yaml` means the file of that name if it exists, else the packaged
    one; so does `--config small`. Configs go in front, so that an option wins over them wherever
    it stands.

    Raises:
        UserError: There is no such file and no such config, or none is named.
    """
    configs: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in ("-c", "--config"):
            others.append(word)
        else:
            configs += ["--config", _find_config(value if equals else next(rest, ""))]
    return [*configs, *others]


def expand_configs(words: Sequence[str], read: Callable[[Path], list[str]]) -> list[str]:
    """The command line, with what its config files say written out in front.

    Args:
        words: The command line.
        read: From a config file to words of a command line.
    """
    configs: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            configs += read(Path(value if equals else next(rest, "")))
        else:
            others.append(word)
    return [*configs, *others]


def _find_config(name: str) -> str:
    if not name:
        raise UserError(
            "--config without a file",
            "a YAML file, or a config's name",
            "--config configs/small.yaml",
        )
    if Path(name).is_file():
        return name
    package = Path(__file__).parent.parent
    # In a wheel the configs lie inside the package, in a checkout beside it.
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


def read_config(path: Path) -> dict[str, Any]:
    """A config file as nested dictionaries.

    Raises:
        UserError: It cannot be read.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
        error: Exception | str = f"it holds {type(config).__name__}"
    except (OSError, yaml.YAMLError, ValueError) as problem:
        error = problem
    raise UserError(
        f"--config {path} cannot be read: {' '.join(str(error).split())}",
        "a YAML file with sections",
        "--config configs/small.yaml",
    )


def model_of_config(path: Path) -> "GPTConfig":
    """The model of a config.

    Raises:
        UserError: It cannot be read, or has none.
    """
    from slm.model import GPTConfig

    try:
        return GPTConfig(**read_config(path)["model"]["gpt"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"--config {path} names no model: {' '.join(str(error).split())}",
            "a config with a section model.gpt",
            "--config configs/small.yaml",
        ) from error
