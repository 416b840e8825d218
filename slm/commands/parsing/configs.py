"""Config files: those that come with the package, found by name, and the user's."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.errors import UserError
from slm.files import utf8_conversion

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
    """A config file as nested dictionaries, with jsonargparse's rules for what is a number.

    Raises:
        UserError: It cannot be read, is not made of sections, or repeats a key.
    """
    import yaml  # not needed for `slm --help`
    from jsonargparse import get_loader

    expected, remedy = "a YAML file with sections", "--config configs/small.yaml"
    data = b""
    try:
        data = Path(path).read_bytes()
        if b"\0" in data:
            raise UnicodeDecodeError("utf-8", data, 0, 1, "NUL characters")
        text = data.decode("utf-8-sig")
        if error := _repeated_key(yaml.compose(text, yaml.SafeLoader)):
            expected, remedy = "each key once in its section", "merge the two, or remove one"
        else:
            # With a comment in front: the loader takes a lone `data:` for a text.
            config = get_loader("yaml")(f"#\n{text}")
            if config is None or isinstance(config, dict):
                return config or {}
            error = f"it contains {type(config).__name__}"
    except UnicodeDecodeError as problem:
        error, expected = f"it is not UTF-8: {problem.reason}", "UTF-8"
        remedy = f"convert the file, for instance: {utf8_conversion(data)}"
    except (OSError, yaml.YAMLError, ValueError, RecursionError, TypeError) as problem:
        error = str(problem)
    found = f"--config {path} cannot be read: {' '.join(error.split())}"
    raise UserError(found, expected, remedy)


def _repeated_key(root: Any) -> str | None:
    """Describes the first key that occurs twice in a section; YAML would use the last value."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(getattr(node, "value", None), list):
            continue
        seen.add(id(node))  # aliases make it a graph
        if node.id == "sequence":
            nodes += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            nodes.append(value)
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if key.id != "scalar" or key.tag.endswith(":merge"):
                continue
            if name in lines:
                return f"key {key.value} on line {lines[name]} is repeated on line {line}"
            lines[name] = line
    return None


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
