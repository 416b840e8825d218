"""A typed view of the options of `fit`, for checks and plans."""

from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import Namespace

from slm.data.cleaning import Cleaning
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.model import GPTConfig
from slm.training.optimization import OptimizerOptions
from slm.training.precision import Precision


@dataclass(frozen=True)
class TrainerOptions:
    """The Trainer's options that this project reads."""

    accelerator: str
    devices: Any
    num_nodes: int
    precision: Precision
    max_steps: int
    min_steps: int | None
    max_time: Any
    accumulate_grad_batches: int
    log_every_n_steps: int | None
    val_check_interval: int | float | None
    gradient_clip_algorithm: str | None


@dataclass(frozen=True)
class FitOptions:
    """What a training run is planned by."""

    gpt: GPTConfig
    optimizer: OptimizerOptions
    compile: bool
    data: StoryData
    trainer: TrainerOptions
    val_interval: int
    save_interval: int
    budget: str | None
    check_device: bool
    given: frozenset[str]
    """Names of the options on the command line, with their dashes."""

    @classmethod
    def of(cls, parsed: Namespace, given: frozenset[str]) -> "FitOptions":
        """The options that LightningCLI has parsed."""
        data = parsed.data.as_dict()
        try:
            return cls(
                gpt=GPTConfig(**parsed.model.gpt.as_dict()),
                optimizer=OptimizerOptions(**parsed.model.optimizer.as_dict()),
                compile=parsed.model.compile,
                data=StoryData(**data | {"clean": Cleaning(**data["clean"])}),
                trainer=TrainerOptions(
                    **{field.name: parsed.trainer[field.name] for field in fields(TrainerOptions)}
                ),
                val_interval=parsed.val_interval,
                save_interval=parsed.save_interval,
                budget=parsed.budget,
                check_device=parsed.check_device,
                given=given,
            )
        except ValueError as error:
            raise UserError.from_value_error(
                error, "slm fit --help explains the options"
            ) from error
