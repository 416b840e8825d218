"""What `fit`, `validate` and `test` give to Lightning's Trainer."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from slm.hardware import find_device
from slm.reports.pictures import Pictures
from slm.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from slm.training.callbacks.compiling import CompileAtStart
from slm.training.callbacks.curves import TrainingCurves
from slm.training.callbacks.device_check import DeviceCheck
from slm.training.callbacks.progress import ProgressLine
from slm.training.callbacks.record import RunRecord
from slm.training.callbacks.standard import standard_callbacks
from slm.training.callbacks.time_budget import TimeBudget, TimeLimit
from slm.training.checkpoint_io import AtomicCheckpointIO
from slm.training.cluster import cluster_environments, fsdp2
from slm.training.precision import is_native, resolve_precision
from slm.training.run_logger import RunLogger
from slm.training.runs import Run, RunClaim

DEFAULTS = {
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}
"""Defaults of the Trainer's options that differ from Lightning's."""


class SaveConfig(SaveConfigCallback):
    """Saves the run's config beside its checkpoints, and keeps earlier ones."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """A resumed run gets `config-2.yaml`, and so on."""
        folder = Path(trainer.log_dir or ".")  # a collective call
        if trainer.is_global_zero:
            self.config_filename = Run(folder).next_config
        # Which checkpoint this run came from is no part of how to train another.
        self.config = self.config.clone()
        self.config.ckpt_path = None
        super().setup(trainer, pl_module, stage)


def fit_arguments(
    options: Namespace, claim: RunClaim, step: int, budget: TimeBudget | None
) -> dict[str, Any]:
    """The Trainer's arguments for `fit`; `step` is that of the resumed checkpoint, or 0."""
    trainer = options.trainer
    arguments = _common_arguments(options)
    arguments["callbacks"] = [  # called in this order
        *(trainer.callbacks or []),
        *([TimeLimit(trainer.max_time)] if trainer.max_time else []),
        *([budget] if budget else []),
        *standard_callbacks(TrainingCurves(), trainer.enable_progress_bar is not False),
        Pictures(),
        RunRecord(),
        *([DeviceCheck()] if options.check_device else []),
        CompileAtStart(),
    ]
    arguments["max_time"] = None
    if trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
        arguments["callbacks"] += [BestCheckpoint(), LastCheckpoint(options.save_interval)]
    arguments["val_check_interval"] = options.val_interval * trainer.accumulate_grad_batches
    if trainer.logger in (None, True):
        root = Path(trainer.default_root_dir or ".").expanduser().absolute()
        arguments["logger"] = RunLogger(root, claim, step)
    if trainer.plugins is None:
        arguments["plugins"].append(AtomicCheckpointIO(options.on_save_error))
    return arguments


def measure_arguments(options: Namespace) -> dict[str, Any]:
    """The Trainer's arguments for `validate` and `test`."""
    trainer = options.trainer
    arguments = _common_arguments(options)
    arguments["callbacks"] = list(trainer.callbacks or [])
    if trainer.logger is None:
        arguments |= {"logger": False, "enable_checkpointing": False}
    if trainer.enable_progress_bar is not False:
        arguments["callbacks"].append(ProgressLine(TrainingCurves()))
    return arguments


def _common_arguments(options: Namespace) -> dict[str, Any]:
    """Precision, strategy and plugins."""
    trainer = options.trainer
    device = find_device(trainer.accelerator).type
    precision = resolve_precision(trainer.precision, device)
    if not is_native(precision, device):
        rank_zero_only(print)(
            f"Slow       {precision} is not native on this {device}; "
            "--trainer.precision auto takes the fastest format that is",
            file=sys.stderr,
        )
    arguments: dict[str, Any] = {"precision": precision, "enable_progress_bar": False}
    if trainer.strategy == "fsdp2":
        arguments["strategy"] = fsdp2(trainer.devices, trainer.num_nodes)
    if trainer.plugins is None:
        arguments["plugins"] = list(cluster_environments())
    return arguments
