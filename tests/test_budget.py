"""Training for a time: the clock, the learning rate that follows it, and the plan."""

import pytest
import torch
from lightning.pytorch import Callback
from test_module import GPT, OptimizerOptions, make_data, make_model, train  # noqa: F401

from slm.errors import UserError
from slm.training import probe
from slm.training.callbacks import time_budget as budget_module
from slm.training.callbacks.checkpoints import LastCheckpoint
from slm.training.callbacks.time_budget import TimeBudget, format_duration, parse_duration
from slm.training.callbacks.validation import LastStep
from slm.training.checkpoint import open_checkpoint
from slm.training.optimization import make_optimizer
from slm.training.probe import measure


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("1h30m", 5400), ("1h0m5s", 3605), (" 3m ", 180)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "soon", "0s", "-3m", "3m1h", "1h 30m", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UserError, match="--budget"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45, "45 s"), (170, "2 min 50 s"), (1200, "20 min"), (5400, "1 h 30 min"), (0.2, "0.2 s")],
)
def test_durations_in_words(seconds, words):
    assert format_duration(seconds) == words


class Clock:
    """Time as a run sees it: it passes only when a batch is trained."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(budget_module.time, "perf_counter", lambda: self.now)

    def ticking(self, seconds):
        clock = self

        class Tick(Callback):
            def __init__(self):
                self.rates = []

            def on_before_zero_grad(self, *_):
                clock.now += seconds

            def on_before_optimizer_step(self, trainer, module, optimizer):
                self.rates.append(optimizer.param_groups[0]["lr"])

        return Tick()


class SlowValidation(Callback):
    """Validations that take their time."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.count = clock, seconds, 0

    def on_validation_start(self, *_):
        self.clock.now += self.seconds
        self.count += 1


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize(("seconds", "steps"), [(1.0, 20), (3.0, 7), (2.1, 10), (50.0, 1)])
def test_it_ends_at_the_step_nearest_to_the_end(tmp_path, make_data, clock, seconds, steps):  # noqa: F811
    tick, budget = clock.ticking(seconds), TimeBudget(20.0, 10)
    train(tmp_path, make_data(), -1, [tick, budget, LastStep()])
    assert len(tick.rates) == steps
    assert budget.spent >= 20.0, "it is used up, also where the last step ended a little early"
    clock.now += 100.0
    assert budget.spent < 60.0, "what comes afterwards is not counted"


def test_the_learning_rate_ends_when_the_time_does(tmp_path, make_data, clock):  # noqa: F811
    """Whatever number of steps had been expected: here 10, and 40 are made."""
    options = OptimizerOptions(lr=0.01, warmup_steps=2, min_lr_ratio=0.0)
    tick = clock.ticking(0.5)
    train(
        tmp_path, make_data(), -1, [tick, TimeBudget(20.0, 10), LastStep()],
        model=make_model(optimizer=options),
    )  # fmt: skip
    assert len(tick.rates) == 40
    assert tick.rates[8] == pytest.approx(0.01), "two of ten steps of warm-up are eight of forty"
    assert max(tick.rates) <= 0.01, "the clock's fractions of a step do not lift the peak"
    assert tick.rates[-1] == pytest.approx(0.0, abs=5e-5)
    assert tick.rates[24] == pytest.approx(0.005, rel=0.05), "half-way down behind the warm-up"


def test_validations_count(tmp_path, make_data, clock):  # noqa: F811
    tick = clock.ticking(1.0)
    slow = SlowValidation(clock, 5.0)
    train(tmp_path, make_data(), -1, [slow, tick, TimeBudget(20.0, 10), LastStep()])
    assert len(tick.rates) == 10, "after 4 and 8 steps five seconds each"


def test_a_validation_that_uses_up_the_time_is_the_last(tmp_path, make_data, clock):  # noqa: F811
    tick, budget = clock.ticking(1.0), TimeBudget(20.0, 10)
    slow = SlowValidation(clock, 30.0)
    train(tmp_path, make_data(), -1, [slow, tick, budget, LastStep()])
    assert (len(tick.rates), slow.count) == (4, 1)
    assert budget.spent == 34.0


def test_a_resumed_run_has_the_rest_of_the_time(tmp_path, make_data, clock):  # noqa: F811
    class Stop(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 6:
                raise RuntimeError("interrupted")

    tick = clock.ticking(1.0)
    checkpointer = LastCheckpoint(100)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(
            tmp_path, make_data(), -1,
            [Stop(), tick, TimeBudget(20.0, 20), LastStep(), checkpointer],
        )  # fmt: skip
    last = tmp_path / "checkpoints" / "last.ckpt"
    (state,) = (
        value for key, value in open_checkpoint(last).contents["callbacks"].items()
        if key == "TimeBudget"
    )  # fmt: skip
    assert state == {"spent": 6.0, "seconds": 20.0, "steps": 20}
    clock.now += 1000.0
    again = clock.ticking(1.0)
    train(
        tmp_path, make_data(), -1,
        [again, TimeBudget(20.0, 20), LastStep(), LastCheckpoint(100)], last,
    )  # fmt: skip
    assert len(again.rates) == 14
    assert again.rates[0] < tick.rates[-1]


def test_measuring_touches_no_random_state_and_finds_times():
    before = torch.random.get_rng_state()
    found = measure(
        GPT, OptimizerOptions(), torch.device("cpu"), batch_size=2, precision="32-true", seconds=0
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert found.micro_batch_seconds > 0
    assert found.update_seconds > 0
    assert found.step_seconds(3) == 3 * found.micro_batch_seconds + found.update_seconds


@pytest.mark.parametrize(("seconds", "least", "most"), [(0, 3, 3), (0.5, 4, 10**6)])
def test_measuring_takes_its_time_and_three_steps_at_least(monkeypatch, seconds, least, most):
    steps = []

    def make(*arguments, **options):
        optimizer = make_optimizer(*arguments, **options)
        optimizer.register_step_pre_hook(lambda *_: steps.append(1))
        return optimizer

    monkeypatch.setattr(probe, "make_optimizer", make)
    cpu = torch.device("cpu")
    measure(GPT, OptimizerOptions(), cpu, batch_size=2, precision="32-true", seconds=seconds)
    assert least <= len(steps) <= most


def test_a_batch_that_does_not_fit_is_reported_as_none(monkeypatch):
    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.autograd, "backward", refuse)
    assert measure(
        GPT, OptimizerOptions(), torch.device("cpu"), batch_size=2, precision="32-true"
    ) is None  # fmt: skip
