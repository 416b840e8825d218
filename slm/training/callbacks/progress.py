"""Progress on the terminal."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from slm.training.callbacks.curves import TrainingCurves, log_interval
from slm.training.callbacks.time_budget import time_budget


def expected_steps(trainer: Trainer) -> int:
    """Optimizer steps that a run will have: stated, or estimated where its time is."""
    budget = time_budget(trainer)
    return budget.steps if budget else trainer.max_steps


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
