"""Watchers of a run: curves, sampled stories, the progress line. They change no weight."""

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed
from torch.optim import Optimizer
from tqdm import tqdm

from slm.data.datamodule import StoryData
from slm.hardware import describe_device
from slm.model import SamplingOptions
from slm.training.budget import time_budget
from slm.training.collection import QuietCollector
from slm.training.finite import diverged
from slm.training.module import StoryModel
from slm.training.storyteller import PROMPT, StoryRequest


def tokens_per_step(trainer: Trainer, data: StoryData) -> int:
    """Tokens that one optimizer step trains on, over all processes and micro-batches."""
    micro_batches = trainer.accumulate_grad_batches * trainer.world_size
    return data.batch_size * data.block_size * micro_batches


def log_interval(trainer: Trainer) -> int:
    """Optimizer steps between two log points, `--trainer.log_every_n_steps`."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def expected_steps(trainer: Trainer) -> int:
    """Optimizer steps that a run will have: stated, or estimated where its time is."""
    budget = time_budget(trainer)
    return budget.steps if budget else trainer.max_steps


TENSORBOARD_LAYOUT = {
    "run": {
        "loss": ["Multiline", ["^train_loss$", "^val_loss$"]],
        "bits per byte": ["Multiline", ["^val_bits_per_byte$"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm": ["Multiline", ["^grad_norm$"]],
        "tokens per second": ["Multiline", ["^tokens_per_second$"]],
    }
}
"""Charts side by side under "Custom Scalars"; the other tabs fold most curves away."""


class TrainingCurves(Callback):
    """Logs scalars over optimizer steps.

    At every `log_every_n_steps`-th step: `train_loss` (mean since the last point), `lr`,
    `grad_norm` (before clipping), `tokens_per_second` (without validations) and
    `tokens_seen`.
    At each validation: `val_loss`, `val_perplexity`, `val_bits_per_byte`. Between two points
    nothing is read back from the device.

    Attributes:
        latest: The values logged last.
        seconds: From the first step's begin to the last one's end, validations between included.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.seconds = 0.0
        self._first_batch: float | None = None
        self._trainer: Trainer | None = None
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and lays out TensorBoard's tab of custom scalars."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(TENSORBOARD_LAYOUT)
        self._trainer = trainer
        self._paused: float | None = None
        self._begin_interval(trainer.global_step, pl_module.device)
        if self._saved is not None:  # a resumed run finishes the interval that it was stopped in
            losses = self._saved["losses"].to(pl_module.device)
            same = len(losses) == trainer.world_size
            self._loss = losses[trainer.global_rank] if same else losses.mean()
            self._batches = self._saved["batches"]
            self._whole_steps = self._loss, self._batches
            self._saved = None

    def _begin_interval(self, step: int, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._batches = 0
        self._whole_steps = self._loss, 0
        self._step = step
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Each process's sum of the losses since the last log point, up to the last whole step."""
        if self._trainer is None:
            return {}
        loss, batches = self._whole_steps
        losses = [torch.zeros_like(loss) for _ in range(self._trainer.world_size)]
        if len(losses) == 1:
            losses = [loss]
        else:
            distributed.all_gather(losses, loss)
        return {"losses": torch.stack(losses).cpu(), "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps them for when training starts."""
        self._saved = state_dict or None

    def on_train_batch_start(self, *_: Any) -> None:
        """Lets the clock go on after a validation and all that came with it."""
        if self._first_batch is None:
            self._first_batch = self._since = time.perf_counter()
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Notes the rate of this step: afterwards the schedule has moved on."""
        self._lr = optimizer.param_groups[-1]["lr"]  # AdamW's; Muon's keeps its ratio to it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sums the loss; at a log point and at the last step, writes the curves.

        Raises:
            UserError: The loss is not finite.
        """
        # Lightning has divided each micro-batch's loss by the number of micro-batches.
        self._loss = self._loss + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._batches += 1
        assert self._first_batch is not None
        self.seconds = time.perf_counter() - self._first_batch
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._whole_steps = self._loss, self._batches
        if step == self._step or (step % log_interval(trainer) and not trainer.should_stop):
            return
        assert isinstance(pl_module, StoryModel)
        assert pl_module.grad_norm is not None
        mean = self._loss / self._batches
        mean_loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))
        if not math.isfinite(mean_loss) and not pl_module.skip_nonfinite:
            raise diverged(f"the loss is {mean_loss}", step)
        seconds = time.perf_counter() - self._since
        data: StoryData = trainer.datamodule  # type: ignore[attr-defined]
        self.latest = {
            "train_loss": mean_loss,
            "lr": self._lr,
            "grad_norm": pl_module.grad_norm.item(),
            "tokens_per_second": (step - self._step) * tokens_per_step(trainer, data) / seconds,
            "tokens_seen": float(data.samples_trained() * data.block_size),
        }
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)
        self._begin_interval(step, pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was measured."""
        if trainer.state.fn != "fit":
            return
        measured = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_")
        }
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=trainer.global_step)


class SampledStories(Callback):
    """Writes a story into TensorBoard at each validation: same prompt, same seed, other weights."""

    def __init__(self, prompt: str = PROMPT, max_new_tokens: int = 256) -> None:
        self.request = StoryRequest(prompt, SamplingOptions(max_new_tokens=max_new_tokens))

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the story with the weights of this moment."""
        assert isinstance(pl_module, StoryModel)
        if trainer.state.fn != "fit" or trainer.sanity_checking or pl_module.sharded:
            return
        story = self.request.prompt + "".join(pl_module.storyteller().tell(self.request))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Two spaces before a line end: a line break in TensorBoard's Markdown.
                text = story.replace("\n", "  \n")
                logger.experiment.add_text("story", text, trainer.global_step)


class LastStep(Callback):
    """Validates once more at the last step, whatever the interval, so that it can be the best."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks for the stop, which Lightning precedes by a validation, at `max_steps`."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class PendingValidation(Callback):
    """Makes up for a validation in which a run was stopped, before training continues."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._extra_step = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that a validation has begun."""
        if trainer.state.fn == "fit":
            self._step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that it has ended; comes before the checkpoints, which Lightning calls last."""
        self._step = None

    def state_dict(self) -> dict[str, Any]:
        """The step of a validation that has begun and not ended."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up that step."""
        self._step = state_dict["step"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets a run begin that has no step left to train."""
        if self._step is not None and 0 < trainer.max_steps <= self._step:
            self._extra_step = 1
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the validation, if there is one to run; Lightning would leave it out."""
        if self._extra_step:
            trainer.fit_loop.epoch_loop.max_steps -= self._extra_step
            trainer.should_stop = True
        if self._step is not None:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


SAY_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class ProgressLine(Callback):
    """A bar with loss and tokens per second on a terminal, elsewhere a line now and then.

    And a line for each validation.

    Args:
        curves: Where loss and speed are read from.
    """

    def __init__(self, curves: TrainingCurves) -> None:
        self._curves = curves
        self._bar: tqdm[Any] | None = None
        self._validation: tqdm[Any] | None = None

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        self._said = time.perf_counter()
        self._bar = tqdm(
            total=expected_steps(trainer),
            initial=trainer.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=None,
        )

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar at log points; where there is none, prints a line now and then."""
        step = trainer.global_step
        if self._bar is None or step % log_interval(trainer) or step == self._bar.n:
            return
        latest = self._curves.latest
        if self._bar.disable:
            self._bar.n = step
            if time.perf_counter() - self._said >= SAY_EVERY:
                self._said = time.perf_counter()
                print(
                    f"step {step:>6,} of {self._bar.total:,}  train_loss "
                    f"{latest['train_loss']:.4f}  {latest['tokens_per_second']:,.0f} tokens/s",
                    file=sys.stderr,
                    flush=True,
                )
            return
        self._bar.set_postfix_str(
            f"loss {latest['train_loss']:.3f}, {latest['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar for the validation."""
        self._begin(trainer, int(sum(trainer.num_val_batches)), "validating")

    @rank_zero_only
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar for the test."""
        self._begin(trainer, int(sum(trainer.num_test_batches)), "testing")

    def _begin(self, trainer: Trainer, batches: int, label: str) -> None:
        self._validation = tqdm(
            total=batches, desc=label, unit="batch", dynamic_ncols=True, disable=None, leave=False
        )

    @rank_zero_only
    def on_validation_batch_end(self, *_: Any) -> None:
        """Moves the validation's bar."""
        if self._validation is not None:
            self._validation.update()

    @rank_zero_only
    def on_test_batch_end(self, *_: Any) -> None:
        """Moves the test's bar."""
        self.on_validation_batch_end()

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the validation's bar; while training, prints where the run stands."""
        if self._validation is not None:
            self._validation.close()
        if trainer.state.fn == "fit" and "val_loss" in trainer.callback_metrics:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            train = self._curves.latest.get("train_loss")
            tqdm.write(
                f"step {trainer.global_step:>6,}  "
                + (f"train_loss {train:.4f}  " if train is not None else "")
                + f"val_loss {values['val_loss']:.4f}  "
                f"perplexity {values['val_perplexity']:.2f}  "
                f"bits_per_byte {values['val_bits_per_byte']:.4f}",
                file=sys.stderr,
            )

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the test's bar."""
        if self._validation is not None:
            self._validation.close()

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.update(max(0, trainer.global_step - self._bar.n))
            self._bar.close()

    @rank_zero_only
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leaves the terminal tidy."""
        for bar in (self._validation, self._bar):
            if bar is not None:
                bar.close()


def watchers(curves: TrainingCurves, progress: bool = True) -> list[Callback]:
    """What `fit` hangs around each step, apart from checkpoints; in this order.

    The last step comes first: the others ask it whether this step is the last.

    Args:
        curves: The curves, of which the progress line reads.
        progress: Whether there is a progress line.
    """
    line: list[Callback] = [ProgressLine(curves)] if progress else []
    return [LastStep(), curves, SampledStories(), QuietCollector(), *line, PendingValidation()]


def describe_devices(trainer: Trainer) -> str:
    """The devices in words, for the head of a run."""
    device = trainer.strategy.root_device
    count = f"{trainer.num_devices} x " if device.type == "cuda" else ""
    return count + describe_device(device)
