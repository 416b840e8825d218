"""Checkpoints as files: finding them, opening them, and what makes them complete."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slm.data.tokenizer import CHECKPOINT_KEY, Tokenizer
from slm.errors import UserError
from slm.model import GPT, GPTConfig
from slm.training.memory import is_out_of_memory
from slm.training.runs import find_runs, has_checkpoint

FORMAT_VERSION = 1
_RETIRED = {"init": "gpt2", "softcap": None}
"""Switches that a model no longer has, with the value that means none of it."""
_LAST_COMMIT = "015f626"
"""The last one with these switches and with the MLP `relu2`."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint of this project."""

    path: Path
    contents: dict[str, Any]
    """Everything that Lightning saved, and the entry `CHECKPOINT_KEY`."""

    @property
    def step(self) -> int:
        """Optimizer steps trained."""
        return int(self.contents["global_step"])

    @property
    def validated(self) -> bool:
        """Whether it was not written in the middle of a validation, which is then still to run."""
        state = self.contents["callbacks"].get("PendingValidation", {"step": None})
        return state["step"] is None

    @property
    def entry(self) -> dict[str, Any]:
        """What this project adds to Lightning's checkpoint: tokenizer, data and training facts."""
        return dict(self.contents[CHECKPOINT_KEY])

    @property
    def model_options(self) -> dict[str, Any]:
        """The arguments of `StoryModel`, in plain types."""
        return dict(self.contents["hyper_parameters"])

    @property
    def data_options(self) -> dict[str, Any]:
        """The arguments of `StoryData`, in plain types."""
        return dict(self.contents["datamodule_hyper_parameters"])

    @property
    def gpt(self) -> GPTConfig:
        """Shape of the network."""
        return GPTConfig(**self.model_options["gpt"])

    @property
    def label(self) -> str:
        """What it is called in figures: its run, its name and its step."""
        run = self.path.resolve().parent.parent.name
        return f"{run}, {self.path.stem}, step {self.step:,}"

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer the model was trained with."""
        return Tokenizer.from_plain(self.entry["tokenizer"])

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """The data options that give this checkpoint's tokenizer."""
        tokenizer = self.entry["tokenizer"]
        own = tokenizer["name"] != "gpt2"
        return {
            "tokenizer": str(self.path.resolve()) if own else "gpt2",
            "vocab_size": tokenizer["n_vocab"],
        }

    def check_tokenizer(self, found: dict[str, Any]) -> None:
        """Compares the data's tokenizer with the checkpoint's.

        Args:
            found: `Tokenizer.identity()` of the data's.

        Raises:
            UserError: They differ.
        """
        saved = self.entry["tokenizer"]
        if found["sha256"] != saved["sha256"]:
            options = self.tokenizer_options
            raise UserError(
                f"the data's {found['name']} vocabulary of {found['n_vocab']:,} tokens is not the "
                f"one that {self.path} was trained with",
                f"that one: {saved['name']}, {saved['n_vocab']:,} tokens, SHA-256 "
                f"{saved['sha256'][:12]}…",
                f"prepare the data with it: --data.tokenizer {options['tokenizer']} "
                f"--data.vocab_size {options['vocab_size']} "
                f"--model.gpt.vocab_size {options['vocab_size']}",
            )

    def check_shape(self, gpt: dict[str, Any]) -> None:
        """Compares the options of a model with the checkpoint's, dropout aside.

        Args:
            gpt: `GPTConfig` in plain types.

        Raises:
            UserError: They differ.
        """
        saved = asdict(self.gpt)  # an option that is younger than the checkpoint has its default
        for name, value in gpt.items():
            if name != "dropout" and value != saved[name]:
                raise UserError(
                    f"--model.gpt.{name} {value} for a checkpoint with {name} {saved[name]}",
                    f"the shape of the checkpoint {self.path}",
                    f"--model.gpt.{name} {saved[name]}, or train a new model without that "
                    "checkpoint",
                )

    def fingerprint(self) -> str:
        """The beginning of a SHA-256 over the weights: which model this is, wherever it lies."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.contents["state_dict"].items()):
            digest.update(name.encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:12]

    def make_model(self) -> GPT:
        """The trained network, in evaluation mode, on the CPU."""
        model = GPT(self.gpt)
        model.load_state_dict(
            {
                name.removeprefix("model."): tensor
                for name, tensor in self.contents["state_dict"].items()
                if name.startswith("model.")
            }
        )
        return model.eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint without running code from it (`weights_only`), tensors memory-mapped.

    Raises:
        UserError: There is no such file, or it is not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is {'a folder' if path.is_dir() else 'not there'}",
            "a checkpoint file, such as lightning_logs/version_0/checkpoints/best.ckpt",
            "name the file, or train one: slm fit --config configs/quickstart.yaml",
        )
    try:
        # Mapped, not read: most callers want a few words of it. Windows cannot replace a file
        # that is mapped, as a resumed run does.
        mapped = os.name != "nt"
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        if is_out_of_memory(error):
            raise UserError(
                f"{path} does not fit into the memory that is left",
                f"{path.stat().st_size / 1e6:,.0f} MB of it",
                "end other programs, or raise the limit (ulimit -v)",
            ) from error
        raise UserError(
            f"{path} is not a checkpoint, or not a whole one",
            "a file that `slm fit` wrote",
            "name another file; an interrupted copy has to be copied again",
        ) from error
    entry = contents.get(CHECKPOINT_KEY) if isinstance(contents, dict) else None
    version = entry.get("format_version") if isinstance(entry, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is "
            + ("no checkpoint of this project" if version is None else f"of version {version}"),
            f"a file that `slm fit` wrote, format version {FORMAT_VERSION}",
            "name a file under lightning_logs/…/checkpoints/",
        )
    drop_retired(contents["hyper_parameters"]["gpt"], path)
    return Checkpoint(path, contents)


def drop_retired(gpt: dict[str, Any], path: Path) -> None:
    """Removes switches that models no longer have from the options of a model.

    Args:
        gpt: `GPTConfig` in plain types, possibly of an older version; changed in place.
        path: The checkpoint or config they come from.

    Raises:
        UserError: The model uses one of them.
    """
    used = {name: gpt.pop(name) for name, off in _RETIRED.items() if gpt.get(name, off) != off}
    for name in _RETIRED:
        gpt.pop(name, None)
    if gpt.get("mlp") == "relu2":
        used["mlp"] = "relu2"
    if used:
        found = ", ".join(f"{name} {value}" for name, value in used.items())
        raise UserError(
            f"{path} is of a model with {found}, which gained nothing and was removed",
            "a model of the present version",
            f"use the last version that has it: git checkout {_LAST_COMMIT}",
        )


def checkpoint_of(run: Path) -> Path | None:
    """A run's best checkpoint, or its last where there is no best."""
    paths = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    return next((path for path in paths if path.is_file()), None)


def newest_checkpoint(root: Path, name: str) -> Path:
    """A checkpoint, `best.ckpt` or `last.ckpt`, of the newest run.

    Raises:
        UserError: There is no run, or the newest one has no such checkpoint.
    """
    found = [run for run in find_runs(root) if has_checkpoint(run)]
    if not found:
        raise UserError(
            f"there is no run with a checkpoint under {root}",
            "a finished or interrupted run",
            "train one: slm fit --config configs/quickstart.yaml, or name a file by --ckpt_path",
        )
    path = found[-1] / "checkpoints" / name
    if not path.is_file():
        raise UserError(
            f"the newest run, {found[-1]}, has no {name}",
            f"{path}",
            f"name a file of it: --ckpt_path {next(path.parent.glob('*.ckpt'))}",
        )
    return path


def align_progress(contents: dict[str, Any], accumulate: int) -> None:
    """Sets Lightning's batch counters in a checkpoint back to the last whole optimizer step.

    A run that is interrupted between two optimizer steps saves counters that point into the
    middle of an accumulation whose gradients are lost; going on from there would make one step
    from too few micro-batches. The data module starts again behind the last whole step, and so
    must the counters.

    Args:
        contents: The checkpoint, changed in place.
        accumulate: Micro-batches per optimizer step from now on.
    """
    loop = contents["loops"]["fit_loop"]
    batches = contents["global_step"] * accumulate
    for counters in ("total", "current"):
        progress = loop["epoch_loop.batch_progress"][counters]
        for stage in progress:
            progress[stage] = batches
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = contents["global_step"]
    # A validation that was under way is not taken up in its middle but left out.
    for counters in ("total", "current"):
        progress = loop["epoch_loop.val_loop.batch_progress"][counters]
        for stage in progress:
            progress[stage] = 0
