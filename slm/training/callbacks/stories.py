"""A sample story at each validation."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from slm.generation import SamplingOptions
from slm.generation.storyteller import PROMPT, StoryRequest
from slm.printable import printable
from slm.training.module import StoryModel


class SampledStories(Callback):
    """Writes a story into TensorBoard at each validation: same prompt and seed, other weights."""

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StoryModel)
        if trainer.state.fn != "fit" or trainer.sanity_checking or pl_module.sharded:
            return
        request = StoryRequest(PROMPT, SamplingOptions(max_new_tokens=256))
        story = request.prompt + "".join(pl_module.storyteller().generate(request))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Two spaces before a line end: a line break in TensorBoard's Markdown.
                text = printable(story).replace("\n", "  \n")
                logger.experiment.add_text("story", text, trainer.global_step)
