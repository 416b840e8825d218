"""The verb `export`: a trained model in another format."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from slm.commands.lookup import open_named
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import RootOptions, parse
from slm.errors import UserError
from slm.files import new_folder, quoted, shortened
from slm.training.checkpoint import Checkpoint

Format = Literal["hf", "gguf", "onnx", "pt", "safetensors", "web", "space"]
_TARGETS: dict[Format, str] = {
    "hf": "slm.export.hugging_face:HUGGING_FACE",
    "gguf": "slm.export.gguf_files:GGUF",
    "onnx": "slm.export.onnx_graph:ONNX",
    "pt": "slm.export.plain:PT",
    "safetensors": "slm.export.plain:SAFETENSORS",
    "web": "slm.export.web:WEB",
    "space": "slm.export.space:SPACE",
}
_LARGEST_LOSS = 0.1
"""Nats per token by which rounded weights may raise the loss."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`."""

    to: Format | None = None
    """For transformers and its relatives (hf), llama.cpp and Ollama (gguf), onnxruntime and
    transformers.js (onnx), PyTorch (pt, safetensors), a browser (web), or a Hugging Face Space
    (space)."""
    ckpt_path: str | None = None
    """A checkpoint file, a run, or `last` or `best` of the newest run, which is also the
    default."""
    out: str | None = None
    """The folder to create; null means export/FORMAT in the run's folder."""
    trainer: RootOptions = RootOptions()


def export(arguments: Arguments) -> int:
    """Writes a model in another format, opens it again, and compares it with the original."""
    usage = "slm export --to FORMAT [--ckpt_path FILE] [--out FOLDER]"
    options = parse("export", ExportOptions, arguments, usage)
    if options.to is None:
        formats = ", ".join(get_args(Format))
        raise UserError("slm export without --to", f"one of {formats}", "slm export --to hf")
    checkpoint = open_named(options.ckpt_path, options.trainer.logs)
    out = _new_path(options.out, options.to, checkpoint)
    lines = _export(checkpoint, options.to, out)
    print(f"Exported   {shortened(out)}", *lines, "See docs/export.md for how to use it.", sep="\n")
    return 0


def _new_path(named: str | None, to: str, checkpoint: Checkpoint) -> Path:
    home = checkpoint.path.parent
    if home.name == "checkpoints":
        home = home.parent
    path = Path(named).expanduser().absolute() if named else home / "export" / to
    if path.exists() or path.is_symlink():
        path = shortened(path)
        raise UserError(
            f"{path} already exists",
            "the name of a new folder",
            f"--out {quoted(f'{path}-2')}, or remove it",
        )
    return path


def _export(checkpoint: Checkpoint, to: Format, out: Path) -> list[str]:
    """Exports into a folder that appears when everything in it has been checked."""
    from slm.export.comparison import compare  # torch takes a second to load
    from slm.export.target import Target, TrainedModel
    from slm.reports.model_card import model_card

    module, _, name = _TARGETS[to].partition(":")
    target: Target = getattr(importlib.import_module(module), name)
    trained = TrainedModel(checkpoint, checkpoint.make_model(), checkpoint.make_tokenizer())
    with new_folder(out) as folder:
        target.write(trained, folder)
        if to not in ("web", "space"):  # the one is a page, the other has a README of its own
            card = model_card(trained.checkpoint, trained.model, trained.tokenizer)
            (folder / "README.md").write_text(card, encoding="utf-8")
        lines = []
        for file, difference in compare(trained, target.reopen(folder)).items():
            megabytes = (folder / file).stat().st_size / 1e6
            lines.append(f"  {file:<28} {megabytes:8.2f} MB   {difference}")
            tolerance = target.tolerance(file)
            if not (difference.logit <= tolerance and difference.loss <= _LARGEST_LOSS):
                raise UserError(
                    f"{file} does not match the checkpoint when reopened: {difference}",
                    f"logits within {tolerance:g}, a loss at most {_LARGEST_LOSS} nats per token "
                    "higher",
                    "try another version of the export packages, or --to pt, which needs none",
                )
    return lines
