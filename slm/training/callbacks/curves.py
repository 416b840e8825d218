"""Curves of a run: loss, learning rate, gradient norm, throughput."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim import Optimizer

from slm.data.batches import IGNORED
from slm.data.datamodule import StoryData
from slm.training.finite import diverged
from slm.training.module import StoryModel


def tokens_per_step(trainer: Trainer, data: StoryData) -> int:
    """Tokens that one optimizer step trains on, over all processes and micro-batches."""
    micro_batches = trainer.accumulate_grad_batches * trainer.world_size
    return data.batch_size * data.block_size * micro_batches


def log_interval(trainer: Trainer) -> int:
    """Optimizer steps between two log points, `--trainer.log_every_n_steps`."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


TENSORBOARD_LAYOUT = {
    "run": {
        "loss": ["Multiline", ["^train_loss$", "^val_loss$"]],
        "bits per byte": ["Multiline", ["^val_bits_per_byte$"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm": ["Multiline", ["^grad_norm$"]],
        "tokens per second": ["Multiline", ["^tokens_per_second$"]],
    }
}
"""Charts side by side under "Custom Scalars"; the other tabs fold most curves."""


class TrainingCurves(Callback):
    """Logs scalars over optimizer steps.

    At every `log_every_n_steps`-th step and the last: `train_loss` (mean since the last point),
    `lr`, `grad_norm` (before clipping), `tokens_per_second` (without validations) and
    `tokens_seen`. At each validation: `val_loss`, `val_perplexity`, `val_bits_per_byte`. Between
    two points nothing is read from the device. A loss that is not finite ends training with a
    `UserError`.

    Its state is each process's sum of the losses since the last log point, up to the last complete
    step: a resumed run completes the interval that it was stopped in.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}  # the values logged last
        self.seconds = 0.0  # from the first step's start to the last one's end, with validations
        self._first_batch: float | None = None
        self._trainer: Trainer | None = None
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(TENSORBOARD_LAYOUT)
        self._trainer = trainer
        self._paused: float | None = None
        self._begin_interval(trainer.global_step, pl_module.device)
        if self._saved is not None:
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
        self._step, self._since = step, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        if self._trainer is None:
            return {}
        loss, batches = self._whole_steps
        losses = self._trainer.strategy.all_gather(loss).reshape(-1)
        return {"losses": losses.cpu(), "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None

    def on_train_batch_start(self, *_: Any) -> None:
        if self._first_batch is None:
            self._first_batch = self._since = time.perf_counter()
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._lr = optimizer.param_groups[-1]["lr"]  # AdamW's; Muon's keeps its ratio to it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning has divided each micro-batch's loss by the number of micro-batches.
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        data: StoryData = trainer.datamodule  # type: ignore[attr-defined]
        if data.has_requests:  # ignored targets count as 0 in it
            share = (batch[1] != IGNORED).float().mean()
            loss = loss / share.clamp_min(1 / batch[1].numel())  # a window may be all request
        self._loss = self._loss + loss
        self._batches += 1
        assert self._first_batch is not None
        self.seconds = time.perf_counter() - self._first_batch
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._whole_steps = self._loss, self._batches
        step = trainer.global_step
        if step == self._step or (step % log_interval(trainer) and not trainer.should_stop):
            return
        assert isinstance(pl_module, StoryModel)
        assert pl_module.grad_norm is not None
        mean_loss = float(trainer.strategy.reduce(self._loss / self._batches, reduce_op="mean"))
        if not math.isfinite(mean_loss) and not pl_module.skip_nonfinite:
            raise diverged(f"the loss is {mean_loss}", step)
        seconds = time.perf_counter() - self._since
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
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        measured = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_")
        }
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=trainer.global_step)
