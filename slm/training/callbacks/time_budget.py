"""Training for a given time: a clock that the learning rate follows and that ends the run."""

import re
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from slm.errors import UserError


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `90s`, `20m`, `1.5h` or `1h30m`.

    Raises:
        UserError: It is no duration, or zero.
    """
    number = r"\d+(?:\.\d+)?"
    match = re.fullmatch(rf"(?:({number})h)?(?:({number})m)?(?:({number})s)?", text.strip())
    parts = match.groups() if match else ()
    total = sum(float(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not total:
        raise UserError(
            f"--budget {text}", "a time with its units, such as 90s, 20m or 1h30m", "--budget 20m"
        )
    return total


def format_duration(seconds: float) -> str:
    """`1 h 30 min`, `20 min`, `2 min 50 s`, `45 s`."""
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join([f"{count} {unit}" for count, unit in parts if count][:2]) or f"{seconds:.1f} s"


class TimeLimit(Timer):
    """`--trainer.max_time`, from the start of this process: a resumed run has all of it again."""

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        super().__init__(duration)
        if (self.time_remaining() or 0) <= 0:
            raise UserError(
                f"--trainer.max_time {duration}",
                "a duration above 0, as days:hours:minutes:seconds",
                "--trainer.max_time 00:08:00:00",
            )

    def state_dict(self) -> dict[str, Any]:
        """Empty, so that the elapsed time is not restored."""
        return {}


class TimeBudget(Callback):
    """Ends training at the step that ends nearest to the end of the time budget.

    The clock runs from the first step to the last, validations between them included; what comes
    before (preparation, compilation) and after is not counted. A resumed run continues with the
    time that its checkpoint had used. `steps` are the optimizer steps expected to fit into the
    time: the unit of `position`.
    """

    def __init__(self, seconds: float, steps: int) -> None:
        self.seconds = seconds
        self.steps = steps
        self._before = 0.0
        self._started: float | None = None
        self._last_step = (0, 0.0)
        self._step_seconds = 0.0

    @property
    def spent(self) -> float:
        """Seconds used so far."""
        return self._before + (time.perf_counter() - self._started if self._started else 0.0)

    def position(self) -> float:
        """The share of the time that is used, in units of the expected steps."""
        return self.steps * min(1.0, self.spent / self.seconds)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = (trainer.global_step, self.spent)
        if self.spent >= self.seconds:  # stopped in its last validation
            trainer.should_stop = True

    def on_train_batch_start(self, *_: Any) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, ended = self._last_step
        if trainer.global_step == step:
            return  # in the middle of an accumulation
        now = self.spent
        self._last_step, self._step_seconds = (trainer.global_step, now), now - ended
        self._stop_if_used(trainer, now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._started is not None:
            self._last_step = (self._last_step[0], self.spent)
            self._stop_if_used(trainer, self.spent)

    def _stop_if_used(self, trainer: Trainer, now: float) -> None:
        if now + 0.5 * self._step_seconds >= self.seconds:
            trainer.should_stop = True
            self._before, self._started = max(self.spent, self.seconds), None

    def on_train_end(self, *_: Any) -> None:
        self._before, self._started = self.spent, None

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent, "seconds": self.seconds, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["spent"]


def time_budget(trainer: Trainer) -> TimeBudget | None:
    """The budget of a run, if it has one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, TimeBudget)), None)
