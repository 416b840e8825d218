"""The LightningDataModule: prepares stories and serves batches of them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from slm.data.batches import (
    Batch,
    ConsecutiveWindows,
    EpochWindows,
    EveryNth,
    RandomWindows,
    TokenFile,
    random_words,
)
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared, find_folder, find_same_data
from slm.data.source import describe_source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError

_DROPOUT = 1 << 63
"""Stream of random words that seeds dropout. Windows use stream 0, or their epoch's number."""


class StoryData(LightningDataModule):
    """Stories as batches of token windows.

    Training batches never end, and are a pure function of the seed and of the number of windows
    before. Validation and `test` read the validation split once.

    Args:
        batch_size: Windows per batch and device.
        eval_batch_size: Windows per batch in validation; null means batch_size.
        num_workers: Processes that load batches; 0 is enough, loading takes microseconds.
        block_size: Tokens per window; follows the model's.
        seed: Key of the random order; follows seed_everything.
        order: `random` takes windows at random offsets; `epochs` cuts the data into windows and
            takes each once, in random order, before any is repeated.
        corpus: The fields of `Corpus`, where jsonargparse finds these options: which stories, and
            how they are tokenised.

    Raises:
        UserError: An option is out of range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        block_size: int = 128,
        seed: int = 1337,
        order: Literal["random", "epochs"] = "random",
        **corpus: Any,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", 1 if eval_batch_size is None else eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(
                    f"--data.{name} {value}", f"{least} or more", f"--data.{name} {max(least, 32)}"
                )
        self.corpus = Corpus(**corpus)
        self.block_size = block_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.order = order
        self.moved_to: Path | None = None
        self.has_requests = False  # until `setup` has read the manifest
        self.first_sample = 0
        self.first_step = 0
        options = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "num_workers": num_workers,
            "order": order,
        }
        self.save_hyperparameters(self.corpus.to_plain() | options, logger=False)

    @property
    def source(self) -> str:
        """The source as one line."""
        return describe_source(self.corpus.opened.spec)

    @cached_property
    def folder(self) -> Path:
        """The folder of the prepared data, which need not exist yet."""
        return find_folder(self.corpus)

    def find_moved(self, expected: dict[str, Any], roots: Sequence[Path]) -> Path | None:
        """If the source is gone, uses a copy of the data that a checkpoint's manifest describes.

        Searches `root` and `roots`. Returns the folder; None if nothing was missing, or found.
        """
        if self.corpus.opened.exists():
            return None
        prepared = (self.folder / "manifest.json").exists()
        if prepared and Manifest.read(self.folder).source == self.corpus.opened.spec:
            return None
        self.moved_to = find_same_data(expected, [self.folder.parent, *roots])
        self.folder = self.moved_to or self.folder
        return self.moved_to

    def known_tokenizer(self) -> dict[str, Any] | None:
        """Identity of the data's tokenizer; None if it has not been learnt yet."""
        if given := self.corpus.given_tokenizer:
            return given.identity()
        if (self.folder / "manifest.json").exists():
            return Manifest.read(self.folder).tokenizer
        return None

    def prepare_data(self) -> None:
        """Prepares the data if necessary, in one process per machine."""
        if self.moved_to is None:  # else there is no source to prepare
            ensure_prepared(self.corpus, self.folder)

    def setup(self, stage: str) -> None:
        """Opens the prepared data.

        Raises:
            UserError: The folder is damaged, or a split is shorter than one window.
        """
        self.manifest = Manifest.load(self.folder)
        self.tokenizer: Tokenizer = self.manifest.make_tokenizer(self.folder)
        self.has_requests = self.manifest.has_requests
        needed = {"train": self.block_size + 1 if stage == "fit" else 1, "validation": 2}
        for split, tokens in needed.items():
            found = self.manifest.splits[split].tokens
            if found < tokens:
                raise UserError(
                    f"the {split} split of {self.source} contains {found:,} tokens",
                    f"at least {tokens:,} for a context of {self.block_size}",
                    "provide more stories, or a shorter context: --model.gpt.block_size "
                    f"{max(1, found // 4)}",
                )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless windows; each process takes every world_size-th batch."""
        tokens = TokenFile(Manifest.path(self.folder, "train"), self.manifest.dtype)
        kind = EpochWindows if self.order == "epochs" else RandomWindows
        request_end = self.tokenizer.end_of_text if self.has_requests else None
        windows = kind(
            tokens, self.block_size, self.batch_size, self.seed, self.first_sample, request_end
        )
        return self._loader(windows, EveryNth(*self._rank_and_size()))

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, once."""
        tokens = TokenFile(Manifest.path(self.folder, "validation"), self.manifest.dtype)
        shape = (self.block_size, self.eval_batch_size)
        return self._loader(ConsecutiveWindows(tokens, *shape, *self._rank_and_size()), None)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The validation split again: TinyStories has no third one."""
        return self.val_dataloader()

    def samples_trained(self) -> int:
        """The number of windows trained on so far, in all processes and earlier runs.

        Computed from optimizer steps, because loaders may have drawn more batches.
        """
        trainer = self.trainer
        assert trainer is not None
        samples_per_step = trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        return self.first_sample + (trainer.global_step - self.first_step) * samples_per_step

    def dropout_seed(self, micro_batch: int) -> int:
        """The seed of dropout's masks in a micro-batch, a function of its first sample.

        A resumed run draws the same masks as an uninterrupted one, and two processes the same as
        one that accumulates twice as often; no two micro-batches have the same masks. `micro_batch`
        is the index in this optimizer step and process.
        """
        rank, world_size = self._rank_and_size()
        sample = self.samples_trained() + (micro_batch * world_size + rank) * self.batch_size
        return int(random_words(self.seed, sample, 1, stream=_DROPOUT)[0])

    def state_dict(self) -> dict[str, Any]:
        """The position in the endless sequence of samples."""
        assert self.trainer is not None
        steps = self.trainer.global_step
        return {"samples_trained": self.samples_trained(), "optimizer_steps": steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the last window trained on, whatever the batch size is now."""
        self.first_sample = state_dict["samples_trained"]
        self.first_step = state_dict["optimizer_steps"]

    def _rank_and_size(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(self, windows: Any, sampler: EveryNth | None) -> DataLoader[Batch]:
        return DataLoader(
            windows,
            batch_size=None,  # the data set returns whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and sampler is not None,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        )
