"""The LightningDataModule: prepares the stories and feeds batches of them."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from slm.data.batches import Batch, ConsecutiveWindows, EveryNth, RandomWindows
from slm.data.manifest import Manifest
from slm.data.preparation import ensure_prepared, folder_name
from slm.data.sources import open_source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError


class StoryData(LightningDataModule):
    """Stories as batches of token windows.

    Training batches are windows at random offsets, a pure function of the seed and of how many
    windows came before; they never end. Validation, and `test`, walk the validation split once.

    Args:
        source: `hub:OWNER/NAME` (Hugging Face), `builtin` (this project's own stories), or a
            file or folder: .txt with stories separated by <|endoftext|>, .jsonl, .csv, .parquet.
        root: Folder for prepared data; each source and tokenizer gets a folder in it.
        tokenizer: `gpt2`, or `bpe`: a vocabulary of this data's own, learnt from it.
        vocab_size: Size of the `bpe` vocabulary; `gpt2` has 50257.
        batch_size: Windows per batch and device.
        eval_batch_size: Windows per batch in validation; null means batch_size.
        num_workers: Processes that load batches; 0 is enough, loading costs microseconds.
        text_column: Column that holds the stories in .jsonl, .csv, .parquet and hub data.
        validation_share: Part of the stories held out where the source has no validation split.
        block_size: Tokens per window; follows the model's.
        seed: Key of the random offsets; follows seed_everything.

    Raises:
        UserError: An option is out of range.
    """

    def __init__(
        self,
        source: str = "hub:roneneldan/TinyStories",
        root: str = "data",
        tokenizer: Literal["gpt2", "bpe"] = "gpt2",
        vocab_size: int = 50257,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        text_column: str = "text",
        validation_share: float = 0.02,
        block_size: int = 128,
        seed: int = 1337,
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
        if not 0.0 < validation_share < 1.0:
            raise UserError(
                f"--data.validation_share {validation_share}",
                "a share of the stories, above 0 and below 1",
                "--data.validation_share 0.02",
            )
        if tokenizer == "gpt2" and vocab_size != 50257:
            raise UserError(
                f"--data.vocab_size {vocab_size} with --data.tokenizer gpt2",
                "GPT-2's own vocabulary of 50257",
                f"--data.tokenizer bpe --data.vocab_size {vocab_size} learns one of that size",
            )
        self.source = open_source(source, text_column, validation_share)
        self.tokenizer_name = tokenizer
        self.vocab_size = vocab_size
        self.folder = Path(root).expanduser() / folder_name(self.source, tokenizer, vocab_size)
        self.block_size = block_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.first_sample = 0
        self.first_step = 0
        self.save_hyperparameters(
            {
                "source": source if source == "builtin" else self.source.spec,
                "root": str(Path(root).expanduser().resolve()),
                "tokenizer": tokenizer,
                "vocab_size": vocab_size,
                "batch_size": batch_size,
                "eval_batch_size": eval_batch_size,
                "num_workers": num_workers,
                "text_column": text_column,
                "validation_share": validation_share,
            },
            logger=False,
        )

    def prepare_data(self) -> None:
        """Prepares the data if they are not, in one process per machine."""
        ensure_prepared(self.source, self.tokenizer_name, self.vocab_size, self.folder)

    def setup(self, stage: str) -> None:
        """Opens the prepared data.

        Raises:
            UserError: The folder is damaged, or a split is shorter than one window.
        """
        self.manifest = Manifest.load(self.folder)
        self.tokenizer: Tokenizer = self.manifest.make_tokenizer()
        needed = {"train": self.block_size + 1 if stage == "fit" else 1, "validation": 2}
        for split, tokens in needed.items():
            held = self.manifest.splits[split].tokens
            if held < tokens:
                raise UserError(
                    f"the {split} split of {self.source.spec} holds {held:,} tokens",
                    f"at least {tokens:,} for a context of {self.block_size}",
                    "give more stories, or a shorter context: --model.gpt.block_size "
                    f"{max(1, held // 4)}",
                )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless random windows; each process takes every world_size-th batch."""
        windows = RandomWindows(
            Manifest.path(self.folder, "train"),
            self.manifest.dtype,
            self.block_size,
            self.batch_size,
            self.seed,
            self.first_sample,
        )
        rank, world_size = self._place()
        return self._loader(windows, EveryNth(rank, world_size))

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, once."""
        windows = ConsecutiveWindows(
            Manifest.path(self.folder, "validation"),
            self.manifest.dtype,
            self.block_size,
            self.eval_batch_size,
            *self._place(),
        )
        return self._loader(windows, None)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The validation split again: TinyStories has no third one."""
        return self.val_dataloader()

    def samples_trained(self) -> int:
        """How many training windows the weights have seen by now, in all processes and runs.

        Counted from optimizer steps, not from batches drawn: loaders may have drawn ahead.
        """
        trainer = self.trainer
        assert trainer is not None
        samples_per_step = trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        return self.first_sample + (trainer.global_step - self.first_step) * samples_per_step

    def state_dict(self) -> dict[str, Any]:
        """Where in the endless sequence of samples training stands."""
        assert self.trainer is not None
        return {
            "samples_trained": self.samples_trained(),
            "optimizer_steps": self.trainer.global_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the last window trained on, whatever the batch size is now."""
        self.first_sample = state_dict["samples_trained"]
        self.first_step = state_dict["optimizer_steps"]

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(self, windows: Any, sampler: EveryNth | None) -> DataLoader[Batch]:
        # batch_size=None: an index gives a whole batch, gathered at once.
        pin = bool(self.trainer and self.trainer.strategy.root_device.type == "cuda")
        return DataLoader(
            windows,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and sampler is not None,
            pin_memory=pin,
        )
