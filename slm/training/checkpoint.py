"""Opening checkpoints."""

import hashlib
import os
import sys
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm.data.cleaning import Cleaning
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.tokenizer import CHECKPOINT_KEY, Tokenizer
from slm.errors import UserError, is_out_of_memory
from slm.files import quoted
from slm.model import GPT, GPTConfig
from slm.processes import process_rank
from slm.training.runs import Run

if TYPE_CHECKING:  # Lightning takes a second to load
    from slm.data.datamodule import StoryData

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
    def run(self) -> Run:
        """The run it belongs to."""
        return Run.of(self.path.resolve())

    @property
    def step(self) -> int:
        """Optimizer steps trained."""
        return int(self.contents["global_step"])

    @property
    def validated(self) -> bool:
        """False if the run stopped during a validation, which must then be repeated."""
        state = self.contents["callbacks"].get("PendingValidation", {"step": None})
        return state["step"] is None

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss of its run until then, if there was one."""
        states = self.contents["callbacks"].values()
        scores = (s["best_model_score"] for s in states if s.get("monitor") == "val_loss")
        return next((float(score) for score in scores if isinstance(score, torch.Tensor)), None)

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
    def takes_words(self) -> bool:
        """Whether it was trained on stories with requests (slm/data/requests.py)."""
        return self.data_options.get("request") is not None

    @property
    def gpt(self) -> GPTConfig:
        """Shape of the network."""
        return GPTConfig(**self.model_options["gpt"])

    @property
    def label(self) -> str:
        """Its name in figures: run, file and step."""
        return f"{self.run.folder.name}, {self.path.stem}, step {self.step:,}"

    def corpus(self, source: str | None = None, root: str | None = None) -> Corpus:
        """The stories it was trained on, or others from `source`, prepared in `root` if given.

        Raises:
            UserError: An option is out of range: a file has been moved.
        """
        known = {field.name for field in fields(Corpus)}
        options = {name: value for name, value in self.data_options.items() if name in known}
        options["clean"] = Cleaning(**options.get("clean", {}))
        if source is not None:
            options |= {"source": source} | self.tokenizer_options
        return Corpus(**options | ({} if root is None else {"root": root}))

    def check_data(self, folder: Path, manifest: Manifest, *splits: str) -> None:
        """Raises a UserError if splits or the vocabulary differ from those it was trained on."""
        self.check_tokenizer(manifest.tokenizer)
        trained = (self.entry["data"] or {}).get("splits", {})
        for split in splits:
            if manifest.splits[split].sha256 != trained.get(split, {}).get("sha256"):
                raise UserError(
                    f"{folder} contains other data than the checkpoint was trained on",
                    "the same data",
                    "name stories that it has not seen: --data.source stories.txt",
                )

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

    def tokenizer_replacement(self, tokenizer: str) -> dict[str, Any]:
        """The data options to change so that data are encoded in this checkpoint's vocabulary.

        It replaces a vocabulary that would be learnt, or one whose file has been moved.

        Raises:
            UserError: GPT-2's vocabulary is asked for, and the checkpoint has another.
        """
        own = self.tokenizer_options
        moved = tokenizer not in ("gpt2", "bpe") and not Path(tokenizer).expanduser().exists()
        if moved or (tokenizer == "bpe" and own["tokenizer"] != "gpt2"):
            return {f"data.{name}": value for name, value in own.items()}
        if tokenizer == "gpt2" != own["tokenizer"]:
            self.check_tokenizer({"name": "gpt2", "n_vocab": 50257, "sha256": "another"})
        return {}

    def find_moved_data(self, data: "StoryData") -> None:
        """Lets a data module whose source is gone use the same data, if the project was moved."""
        expected = self.entry["data"]
        project = self.run.folder.parent.parent
        roots = [Path("data"), project / "data"]
        found = data.find_moved(expected, roots) if expected else None
        if found and process_rank() == 0:
            print(
                f"Data       {data.source} is gone; the same data, by SHA-256, are in {found}",
                file=sys.stderr,
            )

    def check_tokenizer(self, found: dict[str, Any]) -> None:
        """Raises a UserError if the data's `Tokenizer.identity()` is not the checkpoint's."""
        saved = self.entry["tokenizer"]
        if found["sha256"] != saved["sha256"]:
            options = self.tokenizer_options
            raise UserError(
                f"the data's {found['name']} vocabulary of {found['n_vocab']:,} tokens is not the "
                f"one that {self.path} was trained with",
                f"that one: {saved['name']}, {saved['n_vocab']:,} tokens, SHA-256 "
                f"{saved['sha256'][:12]}…",
                f"prepare the data with it: --data.tokenizer {quoted(options['tokenizer'])} "
                f"--data.vocab_size {options['vocab_size']} "
                f"--model.gpt.vocab_size {options['vocab_size']}",
            )

    def check_shape(self, gpt: GPTConfig) -> None:
        """Raises a UserError if a model has another shape, dropout aside."""
        saved = self.gpt.to_plain()  # options newer than the checkpoint have their defaults
        for name, value in gpt.to_plain().items():
            if name != "dropout" and value != saved[name]:
                raise UserError(
                    f"--model.gpt.{name} {value} for a checkpoint with {name} {saved[name]}",
                    f"the shape of the checkpoint {self.path}",
                    f"--model.gpt.{name} {saved[name]}, or train a new model without that "
                    "checkpoint",
                )

    def check_contents(self) -> None:
        """Accesses what every verb needs; raises an error of Python if it is missing or unknown."""
        names = ("name", "n_vocab", "sha256")
        _ = self.gpt, self.step, self.entry["training"], self.entry["data"]
        _ = [self.entry["tokenizer"][name] for name in names], self.contents["state_dict"].items()

    def check_file(self) -> None:
        """Verifies the file's checksums: about a second for a gigabyte.

        Raises:
            UserError: One differs, or the file cannot be read.
        """
        try:
            with zipfile.ZipFile(self.path) as file:
                damaged = (name := file.testzip()) and f"checksum mismatch in {name}"
        except Exception as error:  # a damaged directory can raise anything
            damaged = str(error)
        if damaged:
            raise UserError(
                f"{self.path} is damaged: {damaged}",
                "the file as it was written",
                "copy it again, or name another checkpoint",
            )

    def fingerprint(self) -> str:
        """The beginning of a SHA-256 over the weights: the identity of the model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.contents["state_dict"].items()):
            digest.update(name.encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:12]

    def make_model(self) -> GPT:
        """The trained network, in evaluation mode, on the CPU.

        Raises:
            UserError: The weights do not fit the model, are damaged, or are not finite.
        """
        self.check_file()
        model = GPT(self.gpt)
        saved = self.contents["state_dict"].items()
        try:
            model.load_state_dict(
                {
                    name.removeprefix("model."): tensor
                    for name, tensor in saved
                    if name.startswith("model.")
                }
            )
        except (RuntimeError, AttributeError) as error:
            raise incompatible(self.path, str(error).partition("\n\t")[2] or str(error)) from error
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"{self.path}: the weights of {name} are not finite",
                    "finite weights: NaN or infinity usually means that training diverged",
                    "name an earlier checkpoint, or train again with a lower --model.optimizer.lr",
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
        # Mapped, not read: most callers need a small part. Windows cannot replace a file that is
        # mapped, as a resumed run does.
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
            f"{path} is not a checkpoint, or an incomplete one",
            "a file that `slm fit` wrote",
            "name another file; copy an interrupted copy again",
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
    checkpoint = Checkpoint(path, contents)
    try:
        update_options(contents["hyper_parameters"]["gpt"], path)
        checkpoint.check_contents()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise incompatible(path, f"{type(error).__name__}, {error}") from error
    return checkpoint


def incompatible(path: Path, what: str) -> UserError:
    """The error for a checkpoint in which something is missing or unknown."""
    return UserError(
        f"{path} is incomplete, or was written by a newer version of slm: {' '.join(what.split())}",
        "a file that `slm fit` of this version wrote",
        "name another checkpoint, or update slm",
    )


def update_options(gpt: dict[str, Any], path: Path) -> None:
    """Turns a `GPTConfig` in plain types from an earlier version into today's, in place.

    Raises:
        UserError: The model uses one of them.
    """
    used = {name: gpt.pop(name) for name, off in _RETIRED.items() if gpt.get(name, off) != off}
    for name in _RETIRED:
        gpt.pop(name, None)
    if gpt.get("mlp") == "relu2":
        used["mlp"] = "relu2"
    if gpt.get("mlp") == "swiglu":  # the width it had before it became an option
        gpt.setdefault("mlp_width", 8 * round(gpt.get("n_embd", GPTConfig.n_embd) / 3))
    if used:
        found = ", ".join(f"{name} {value}" for name, value in used.items())
        raise UserError(
            f"{path} is of a model with {found}, which gained nothing and was removed",
            "a model of the present version",
            f"use the last version that has it: git checkout {_LAST_COMMIT}",
        )


def check_vocabulary_size(data: int, model: int) -> None:
    """Raises a UserError if the data's and the model's vocabularies differ in size."""
    if data != model:
        raise UserError(
            f"the data's vocabulary has {data:,} tokens, the model's {model:,}",
            "the same vocabulary on both sides",
            f"--model.gpt.vocab_size {data}",
        )
