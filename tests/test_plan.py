"""`--budget`: what is planned from what is measured, with measurements made up."""

import dataclasses

import pytest

from slm.commands.fit import plan as planning
from slm.commands.fit.options import FitOptions, TrainerOptions
from slm.commands.fit.plan import Plan, make_plan
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.model import GPT, GPTConfig
from slm.training.optimization import OptimizerOptions
from slm.training.probe import Measurement
from slm.training.scaling import expected_bits_per_byte

SHAPE = GPTConfig(64, 4096, 3, 2, 192, 0.0, position="rotary")


def options(batch_size=8, accumulate=1, given=()):
    return FitOptions(
        gpt=SHAPE,
        optimizer=OptimizerOptions(),
        compile=False,
        data=StoryData(source="builtin", batch_size=batch_size),
        trainer=TrainerOptions("cpu", 1, 1, "32-true", -1, None, None, accumulate, 10, None, None),
        val_interval=1,
        save_interval=1,
        budget="10m",
        check_device=True,
        given=frozenset(given),
    )


@pytest.fixture
def machine(monkeypatch):
    """A machine of some speed (floating-point operations per second) and room (windows)."""

    def build(speed=1e11, room=10**9, gain=1.5):
        def measure(gpt, optimizer, device, *, batch_size, precision, compile=False, seconds=1.5):
            if batch_size > room:
                return None
            parameters = GPT(gpt).parameter_counts().tied
            seconds = 6 * parameters * batch_size * gpt.block_size / speed
            return Measurement(seconds / (gain if compile else 1), 0.001, 10**9, 20.0)

        monkeypatch.setattr(planning, "measure", measure)

    return build


def test_steps_and_tokens_follow_from_the_speed(machine):
    machine()
    plan = make_plan(options(), 600.0, validation_tokens=5_000_000, choose_size=False)
    assert plan.gpt == SHAPE
    assert (plan.batch_size, plan.accumulate, plan.compile) == (8, 1, True)
    parameters = GPT(SHAPE).parameter_counts().tied
    step = 6 * parameters * 8 * 64 / 1e11 / 1.5 + 0.001
    assert plan.steps == round(600 / step)
    assert plan.tokens == plan.steps * 8 * 64
    bits = expected_bits_per_byte(parameters, plan.tokens)
    for part in ("Budget     10 min", "compiled in 20 s", f"{bits:.2f} bits per byte", "1.0 GB"):
        assert part in plan.describe()


@pytest.mark.parametrize(("gain", "seconds"), [(0.9, 600.0), (1.01, 600.0), (2.0, 30.0)])
def test_it_compiles_only_where_that_pays(machine, gain, seconds):
    machine(gain=gain)
    plan = make_plan(options(), seconds, validation_tokens=5_000_000, choose_size=False)
    assert not plan.compile
    assert "eager" in plan.describe()


def test_a_compiler_that_fails_is_done_without(machine, monkeypatch, capsys):
    machine()
    measure = planning.measure

    def fail(*arguments, compile=False, **more):
        if compile:
            raise RuntimeError("no C++ compiler\nat all")
        return measure(*arguments, **more)

    monkeypatch.setattr(planning, "measure", fail)
    assert not make_plan(options(), 600.0, validation_tokens=5_000_000, choose_size=False).compile
    assert "torch.compile does not work here: no C++ compiler\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("room", "batch_size", "accumulate"), [(100, 32, 1), (31, 16, 2), (9, 8, 4)]
)
def test_what_does_not_fit_is_halved_and_accumulated(machine, room, batch_size, accumulate):
    machine(room=room)
    plan = make_plan(options(16, 2), 600.0, validation_tokens=5_000_000, choose_size=False)
    assert (plan.batch_size, plan.accumulate) == (batch_size, accumulate)
    assert plan.tokens_per_step == 32 * 64


def test_no_window_is_lost_where_halves_do_not_add_up(machine):
    machine(room=2)
    plan = make_plan(options(5), 600.0, validation_tokens=5_000_000, choose_size=False)
    assert (plan.batch_size, plan.accumulate) == (2, 3)


def test_too_little_memory_for_anything_is_said(machine):
    machine(room=0)
    for choose_size in (True, False):
        with pytest.raises(UserError, match="not even one window fits"):
            make_plan(options(), 600.0, validation_tokens=5_000_000, choose_size=choose_size)


def test_more_time_and_faster_machines_get_larger_models_and_batches(machine):
    sizes, batches = [], []
    for speed, seconds in ((1e10, 60.0), (1e11, 600.0), (1e12, 3600.0), (1e14, 3600.0)):
        machine(speed)
        plan = make_plan(options(), seconds, validation_tokens=5_000_000, choose_size=True)
        sizes.append(GPT(plan.gpt).parameter_counts().tied)
        batches.append(plan.tokens_per_step)
    assert sizes == sorted(sizes)
    assert batches == sorted(batches)
    assert sizes[0] < 1.5e6 < 10e6 < sizes[-1]
    assert batches[0] == 2048 < batches[-1]


def test_the_size_chosen_is_the_best_by_the_curve(machine):
    machine(1e11)
    chosen = make_plan(options(), 600.0, validation_tokens=5_000_000, choose_size=True).gpt
    found = {}
    for n_layer, n_head, n_embd in planning.SIZES:
        gpt = dataclasses.replace(SHAPE, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        parameters = GPT(gpt).parameter_counts().tied
        rate = planning._COMPILE_GAIN * 1e11 / (6 * parameters)
        found[gpt] = expected_bits_per_byte(parameters, rate * 600.0)
    assert found[chosen] == pytest.approx(min(found.values()), abs=0.003)
    assert max(found.values()) - min(found.values()) > 0.02, "it matters"


def test_the_curve_falls_with_size_and_tokens():
    assert expected_bits_per_byte(2_000_000, 4e6) < expected_bits_per_byte(1_000_000, 4e6)
    assert expected_bits_per_byte(2_000_000, 4e6) < expected_bits_per_byte(2_000_000, 3e6)


def test_validations_take_little_of_the_time():
    def plan(seconds, step_seconds):
        measured = Measurement(step_seconds, 0.0, 0, 0.0)
        return Plan(seconds, SHAPE, "32-true", False, 32, 1, 5_000_000, measured)

    slow = plan(600.0, 0.2)  # 10,000 tokens per second: TinyStories' split would take minutes
    assert slow.val_interval > slow.steps
    fast = plan(600.0, 0.001)
    assert fast.val_interval == fast.steps // 10 + 1


def test_what_is_given_on_the_command_line_is_kept(machine):
    machine()
    given = {"--val_interval", "--save_interval", "--model.compile", "--data.batch_size"}
    wanted = options(batch_size=3, given=given)
    plan = make_plan(wanted, 600.0, validation_tokens=5_000_000, choose_size=True)
    planned = plan.options(wanted)
    assert not {"val_interval", "save_interval"} & set(planned)
    assert planned["model.compile"] is False
    assert planned["data.batch_size"] == 3
    assert planned["trainer.accumulate_grad_batches"] == 1


def test_a_plan_becomes_options(machine):
    machine(room=4)
    plan = make_plan(options(8), 600.0, validation_tokens=5_000_000, choose_size=True)
    planned = plan.options(options(8))
    assert planned["model.gpt.n_embd"] == plan.gpt.n_embd
    assert planned["model.compile"] is True
    assert planned["data.batch_size"] == 4
    assert planned["trainer.accumulate_grad_batches"] == plan.accumulate > 1
    assert planned["save_interval"] == plan.steps // 10
    assert planned["model.optimizer.warmup_steps"] == 100


def test_short_runs_have_a_short_warm_up(machine):
    machine()
    plan = make_plan(options(8), 10.0, validation_tokens=5_000_000, choose_size=False)
    assert plan.options(options(8))["model.optimizer.warmup_steps"] == plan.steps // 10 < 100
    given = options(8, given={"--model.optimizer.warmup_steps"})
    assert "model.optimizer.warmup_steps" not in plan.options(given)
