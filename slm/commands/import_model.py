"""The verb `import`: a checkpoint from a Hugging Face folder."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import RootOptions, parse, positional
from slm.errors import UserError
from slm.files import quoted, replacing, shortened

if TYPE_CHECKING:
    from slm.export.importing import ImportedModel

_PREFIX = "hf:"


@dataclass(frozen=True)
class ImportOptions:
    """The options of `import`."""

    model: str | None = positional("?")
    """`hf:` and the folder of a GPT-2, Qwen3 or Llama as transformers saves it."""
    out: str | None = None
    """The checkpoint to create; null means a run named after the folder, in lightning_logs."""
    trainer: RootOptions = RootOptions()


def import_model(arguments: Arguments) -> int:
    """Writes the checkpoint, and says how to use it."""
    usage = "slm import hf:FOLDER [--out FILE]"
    options = parse("import", ImportOptions, arguments, usage)
    if options.model is None or not options.model.startswith(_PREFIX):
        raise UserError(
            f"slm import {options.model or 'without a model'}",
            "hf: and a folder, as transformers saves a model",
            f"slm import {_PREFIX}{quoted(options.model or 'FOLDER')}",
        )
    folder = Path(options.model.removeprefix(_PREFIX)).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder",
            "the folder of a downloaded or saved model; nothing is fetched from a hub",
            f"check the path, or fetch it first: hf download {quoted(folder)} --local-dir FOLDER",
        )
    default = options.trainer.logs / folder.resolve().name / "checkpoints" / "best.ckpt"
    out = Path(options.out).expanduser().absolute() if options.out else default
    if out.exists():
        raise UserError(
            f"{out} already exists",
            "the name of a new file",
            f"--out {quoted(f'{out}-2.ckpt')}, or remove it",
        )
    from slm.export.importing import read_folder  # torch takes a second to load

    imported = read_folder(folder)
    _save(imported, folder.resolve(), out)
    config, path = imported.model.config, quoted(shortened(out))
    print(
        f"Imported   {shortened(out)}\n"
        f"  {imported.model.parameter_counts()}\n"
        f"  vocabulary of {config.vocab_size:,} tokens, context of {config.block_size:,}\n"
        f"Generate   slm predict --ckpt_path {path}\n"
        f"Fine-tune  slm fit --model.init_from {path} --data.source stories.txt"
    )
    return 0


def _save(imported: "ImportedModel", folder: Path, out: Path) -> None:
    """Writes a checkpoint without training state."""
    from slm.training.bare_checkpoint import save_bare

    origin = f"imported from {folder.name}, a {imported.model_type} model"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            save_bare(temporary, imported.model, imported.tokenizer, origin)
    except OSError:
        for parent in (out.parent, out.parent.parent):
            with suppress(OSError):  # not empty
                parent.rmdir()
        raise
