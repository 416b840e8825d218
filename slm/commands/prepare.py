"""The verb `prepare`: the options of `fit`, of which only the data are used."""

from collections.abc import Sequence
from typing import Any

from slm.commands.trainer import StoryCLI
from slm.data.datamodule import StoryData
from slm.training.module import StoryModel


class PrepareCLI(StoryCLI):
    """The options of `fit`, of which only the data are used."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__("fit", words, name="prepare")

    def before_instantiate_classes(self) -> None:
        """No Trainer is built, so its options need no check."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None is needed."""

    def fit(self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None) -> None:
        """Prepares the data and prints what came out."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        print(f"{datamodule.folder}, from {datamodule.source.spec}")
        for split, facts in datamodule.manifest.splits.items():
            print(
                f"{split:<11}{facts.stories:>12,} stories {facts.tokens:>14,} tokens "
                f"{facts.bytes:>15,} bytes  {facts.bytes / facts.tokens:.2f} bytes per token"
            )
