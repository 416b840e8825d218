"""Progress on the terminal."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from slm.training.callbacks.curves import TrainingCurves, log_interval
from slm.training.callbacks.time_budget import time_budget

SAY_EVERY = 30.0
"""Seconds between two lines of progress if there is no terminal."""


class ProgressLine(Callback):
    """A bar with loss and tokens per second on a terminal, elsewhere a line every half minute.

    Each validation prints a line, too. Loss and speed are read from the curves.
    """

    def __init__(self, curves: TrainingCurves) -> None:
        self._curves = curves
        self._bar: tqdm[Any] | None = None
        self._validation: tqdm[Any] | None = None

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._printed_at = time.perf_counter()
        budget = time_budget(trainer)
        self._bar = tqdm(
            total=budget.steps if budget else trainer.max_steps,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=None,
        )

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, bar = trainer.global_step, self._bar
        if bar is None or step % log_interval(trainer) or step == bar.n:
            return
        loss, speed = (self._curves.latest[name] for name in ("train_loss", "tokens_per_second"))
        if not bar.disable:
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update(step - bar.n)
            return
        bar.n = step
        if time.perf_counter() - self._printed_at >= SAY_EVERY:
            self._printed_at = time.perf_counter()
            print(
                f"step {step:>6,} of {bar.total:,}  train_loss {loss:.4f}  {speed:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(int(sum(trainer.num_val_batches)), "validating")

    @rank_zero_only
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(int(sum(trainer.num_test_batches)), "testing")

    def _open(self, batches: int, label: str) -> None:
        self._validation = tqdm(
            total=batches, desc=label, unit="batch", dynamic_ncols=True, disable=None, leave=False
        )

    @rank_zero_only
    def on_validation_batch_end(self, *_: Any) -> None:
        if self._validation is not None:
            self._validation.update()

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(self._validation)
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

    on_test_end = on_validation_end

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(max(0, trainer.global_step - self._bar.n))
        self._close(self._bar)

    @rank_zero_only
    def on_exception(self, *_: Any) -> None:
        self._close(self._validation)
        self._close(self._bar)

    def _close(self, bar: "tqdm[Any] | None") -> None:
        if bar is not None:
            bar.close()
