"""The target `space`: a folder for a Hugging Face Space that shows the demo page."""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

import slm
from slm.errors import UserError
from slm.export.target import Logits, Target, TrainedModel
from slm.training.bare_checkpoint import save_bare
from slm.training.checkpoint import open_checkpoint

_APP = '''\
"""The page, as `slm demo` shows it."""

import sys

from slm.cli import main

sys.exit(main(["demo", "--ckpt_path", "model.ckpt", "--host", "0.0.0.0", "--port", "7860"]))
'''
_README = """\
---
title: {title}
emoji: 📖
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: mit
---

Short stories by a language model of {parameters}, trained with slm. It knows
the world of its training stories and nothing else, contradicts itself, and nothing filters what it
writes.

`model.ckpt` contains its weights and vocabulary, `slm/` the program (MIT licence).
"""
_CHECKPOINT = "model.ckpt"


def _write(trained: TrainedModel, folder: Path) -> None:
    checkpoint, model = trained.checkpoint, trained.model
    gradio = _gradio_version()
    save_bare(
        folder / _CHECKPOINT,
        model,
        trained.tokenizer,
        checkpoint.entry.get("origin"),
        checkpoint.step,
        checkpoint.data_options.get("request"),
    )
    package = Path(slm.__file__).parent
    shutil.copytree(package, folder / "slm", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app.py").write_text(_APP, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    readme = _README.format(
        title=json.dumps(f"Stories by {checkpoint.label}"),
        gradio=gradio,
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters",
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError as error:
        raise UserError(
            "--to space needs the package gradio, whose version the Space will have",
            "the extra `demo`",
            "pip install 'slm-stories[demo]', or in a clone: pip install -e '.[demo]'",
        ) from error


def _requirements() -> list[str]:
    """What the demo needs, from this installation's own metadata."""
    found = []
    for requirement in requires("slm-stories") or []:
        name, _, marker = requirement.partition(";")
        if not marker or "'demo'" in marker.replace('"', "'"):
            found.append(name.strip())
    return sorted(found)


def _reopen(folder: Path) -> Mapping[str, Logits]:
    model = open_checkpoint(folder / _CHECKPOINT).make_model()
    return {_CHECKPOINT: torch.inference_mode()(model)}


SPACE = Target(_write, _reopen, lambda name: 1e-4)
