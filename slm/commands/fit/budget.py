"""`fit --budget 20m`: what it demands, and what it does to the options."""

import math
import sys
from collections.abc import Collection
from typing import Any

from slm.commands.fit.checks import check_vocabulary, check_vocabulary_size
from slm.commands.fit.plan import Plan, make_plan
from slm.data.cleaning import Cleaning
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.hardware import find_device
from slm.model import GPTConfig
from slm.training.callbacks.time_budget import TimeBudget, format_duration, parse_duration
from slm.training.checkpoint import Checkpoint
from slm.training.optimization import OptimizerOptions

BASE_CONFIG = "modern-20min"
"""The config that a budget starts from where none is named."""

_ENDS = {"--trainer.max_steps", "--model.optimizer.decay_steps"}


def check_budget(options: Any, given: Collection[str] = ()) -> float | None:
    """The seconds that `--budget` gives, if it is given.

    Args:
        options: The parsed options of `fit`.
        given: Names of the options on the command line.

    Raises:
        UserError: It is no time, something else is to end the run, or there are several devices.
    """
    if options.budget is None:
        return None
    seconds = parse_duration(options.budget)
    ends = _ENDS & set(given)
    ends |= {f"--trainer.{n}" for n in ("max_time", "min_steps") if options.trainer[n]}
    if ends:
        name = min(ends)
        raise UserError(
            f"{name} in a run with a budget of {options.budget}",
            "one thing that says when training ends",
            f"leave {name} out, or plan by steps: --budget null --trainer.max_steps 1000",
        )
    if options.trainer.devices not in ("auto", 1, "1") or options.trainer.num_nodes != 1:
        raise UserError(
            f"--budget with --trainer.devices {options.trainer.devices}",
            "one device: the plan is made from what one measures",
            "--trainer.devices 1, or plan by --trainer.max_steps",
        )
    return seconds


def plan_budget(
    options: Any,
    seconds: float,
    *,
    initial: Checkpoint | None,
    choose_size: bool,
    given: Collection[str] = (),
) -> TimeBudget:
    """Prepares the data, measures, prints the plan and puts it into the options of `fit`.

    Args:
        options: The parsed options of `fit`; changed.
        seconds: The time.
        initial: The checkpoint to begin from, if any.
        choose_size: Whether the model's size is to be chosen, too.
        given: Names of the options on the command line; those are kept.

    Raises:
        UserError: Options, data and machine do not go together.
    """
    try:
        data = data_before_measuring(options, initial)
        plan = make_plan(
            options,
            seconds,
            validation_tokens=data.manifest.splits["validation"].tokens,
            choose_size=choose_size,
            given=given,
        )
    except ValueError as error:
        raise UserError.from_value_error(error, "slm fit --help explains it") from error
    apply_plan(options, plan, given)
    print(plan.describe(), file=sys.stderr)
    return TimeBudget(seconds, plan.steps)


def resume_budget(checkpoint: Checkpoint | None, seconds: float, budget: str) -> TimeBudget | None:
    """The budget of a run that was begun with one, to go on with; None if it was not.

    Args:
        checkpoint: The checkpoint to go on from, if any.
        seconds: The time of the whole run.
        budget: The same, as it was typed.

    Raises:
        UserError: The time has been used up.
    """
    states = checkpoint.contents["callbacks"] if checkpoint else {}
    saved = states.get(TimeBudget.__qualname__)
    if checkpoint is None or not saved:
        return None
    if saved["spent"] >= seconds and checkpoint.validated:
        raise UserError(
            f"{checkpoint.path} has already been trained for {format_duration(saved['spent'])}",
            f"a budget above that, in all; it is {budget}",
            f"--budget {math.ceil(2 * saved['spent'])}s",
        )
    steps = round(saved["steps"] * seconds / saved["seconds"])
    return TimeBudget(seconds, max(1, steps))


def data_before_measuring(options: Any, initial: Checkpoint | None) -> StoryData:
    """Prepares the data of a run, so that their mistakes are found before a long measurement.

    Args:
        options: The parsed options of `fit`.
        initial: The checkpoint to begin from, if any.

    Raises:
        UserError: There is no such source or device, or vocabulary or shape do not fit.
        ValueError: The model's or the optimizer's options are out of range.
    """
    GPTConfig(**options.model.gpt.as_dict())
    OptimizerOptions(**options.model.optimizer.as_dict())
    find_device(options.trainer.accelerator)
    plain = options.data.as_dict()
    data = StoryData(**plain | {"clean": Cleaning(**plain["clean"])})
    check_vocabulary_size(data, options.model.gpt.vocab_size)
    if initial is not None:
        initial.check_shape(options.model.gpt.as_dict())
        check_vocabulary(data, initial)
    data.prepare_data()
    data.setup("fit")
    return data


def apply_plan(options: Any, plan: Plan, given: Collection[str] = ()) -> None:
    """Puts a plan into the options of `fit`, as if they had been given; those that were, stay."""
    options.model.gpt.n_layer = plan.gpt.n_layer
    options.model.gpt.n_head = plan.gpt.n_head
    options.model.gpt.n_embd = plan.gpt.n_embd
    options.model.compile = plan.compile
    options.data.batch_size = plan.batch_size
    options.trainer.accumulate_grad_batches = plan.accumulate
    options.trainer.precision = plan.precision
    options.trainer.devices = 1
    if "--model.optimizer.warmup_steps" not in given:
        least = min(options.model.optimizer.warmup_steps, plan.steps // 10)
        options.model.optimizer.warmup_steps = least
    if "--val_interval" not in given:
        options.val_interval = plan.val_interval
    if "--save_interval" not in given:
        options.save_interval = max(1, plan.steps // 10)
