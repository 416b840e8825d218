"""Which room may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "slm"
BASIS = {"errors", "files", "hardware", "printable", "processes", "signals"}
CORE = {*BASIS, "model", "data", "generation", "training"}
ALLOWED = {
    "model": set(),
    "data": {"errors", "files", "printable"},
    "generation": {"hardware", "model", "data"},
    "training": CORE - {"training"},
    "evaluation": CORE,
    "reports": {*CORE, "evaluation"},
    "export": CORE,
    "serving": CORE,
    "bench": {*CORE, "export"},
    "commands": {*CORE, "verbs", "evaluation", "reports", "export", "bench", "serving"},
    "cli.py": {"errors", "printable", "processes", "signals", "verbs", "commands", "__version__"},
    "errors.py": set(),
    "files.py": set(),
    "hardware.py": set(),
    "printable.py": set(),
    "processes.py": set(),
    "signals.py": {"errors"},
    "verbs.py": {"__version__"},
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room):
    place = PACKAGE / room
    for path in [place] if place.is_file() else list(place.rglob("*.py")):
        for module in imported_modules(path):
            if module.startswith("slm."):
                other = module.split(".")[1]
                assert other in {room, *ALLOWED[room]}, f"{path} imports {module}"


def test_generation_knows_of_the_data_only_the_tokenizer():
    for path in (PACKAGE / "generation").rglob("*.py"):
        for module in imported_modules(path):
            assert not module.startswith("slm.data.") or ".tokenizer." in module, module


def test_the_model_needs_torch_and_the_standard_library_only():
    for path in (PACKAGE / "model").rglob("*.py"):
        for module in imported_modules(path):
            top = module.split(".")[0]
            assert top in {"torch", "slm"} | sys.stdlib_module_names, f"{path} imports {module}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import slm.model", ["lightning", "tiktoken", "datasets"]),
        ("import slm.cli", ["torch", "lightning", "jsonargparse", "numpy"]),
        ("from slm.cli import main; main(['--help'])", ["torch", "lightning"]),
        ("import slm.data.preparation", ["torch", "lightning", "datasets", "tokenizers"]),
        ("from slm.cli import main; main(['prepare', '--help'])", ["torch", "lightning"]),
        (
            "import slm.commands.predict.run",
            ["lightning", "torchmetrics", "datasets", "tokenizers", "fastapi", "gradio"],
        ),
        ("import slm.commands.serve, slm.commands.demo", ["lightning", "fastapi", "gradio"]),
        ("import slm.serving.api", ["lightning", "gradio"]),
        ("from slm.cli import main; main(['info', '.'])", ["torch", "lightning", "datasets"]),
    ],
)
def test_nothing_heavy_is_loaded_early(statement, absent):
    code = f"{statement}; import sys; assert not {set(absent)} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
