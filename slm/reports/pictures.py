"""Pictures of the model in TensorBoard."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from slm.training.module import StoryModel

STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, Lily said, "
    '"I want to play with my ball." Her mom smiled.'
)
"""The default text for pictures of a model."""

_VALUES = 1 << 20  # of a matrix are enough for its histogram


class Pictures(Callback):
    """A callback that draws into TensorBoard at each validation.

    Histograms of the weights; and along a short text the attention of all heads, and the next
    token's probabilities.
    """

    def __init__(self, text: str = STORY) -> None:
        self.text = text

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws with the current weights."""
        loggers = [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
        assert isinstance(pl_module, StoryModel)
        if trainer.state.fn != "fit" or trainer.sanity_checking or not loggers or pl_module.sharded:
            return
        # matplotlib takes half a second to load.
        from slm.reports.figures.attention import draw_heads, maps_of_text
        from slm.reports.figures.next_tokens import draw_next_tokens, expectations
        from slm.reports.figures.style import as_array
        from slm.reports.figures.weights import weight_groups

        model, tokenizer = pl_module.model, pl_module.tokenizer
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            return  # the loss reports it, and stops the run
        assert tokenizer is not None
        training = model.training
        model.eval()
        _, maps_LHTT = maps_of_text(model, tokenizer, self.text)
        pictures = {"attention": draw_heads(maps_LHTT)}
        if found := expectations(model, tokenizer, self.text):
            pictures["next tokens"] = draw_next_tokens(found)
        model.train(training)
        for logger in loggers:
            writer: Any = logger.experiment
            for name, figure in pictures.items():
                writer.add_image(name, as_array(figure), trainer.global_step, dataformats="HWC")
            for row, parts in weight_groups(model).items():
                for part, weight in parts.items():
                    if part != "output head" or not model.config.tied:
                        some = weight.flatten()[:: 1 + weight.numel() // _VALUES]
                        writer.add_histogram(f"{row}/{part}", some, trainer.global_step)
