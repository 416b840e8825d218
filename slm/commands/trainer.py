"""fit, validate and test: LightningCLI on this project's model and data."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only

from slm.commands.checks import check_vocabulary, check_vocabulary_size
from slm.commands.conclusion import conclude_fit, describe_run, print_figures
from slm.commands.halving import too_large_noticed
from slm.commands.options import OptionsCLI
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.hardware import find_device
from slm.reports.page import shortened
from slm.reports.pictures import Pictures
from slm.reports.record import RunRecord, run_folder
from slm.training.callbacks import ProgressLine, TrainingCurves, watchers
from slm.training.checkpoint import open_checkpoint
from slm.training.checkpointing import AtomicCheckpointIO, LastCheckpoint, best_checkpoint
from slm.training.device_check import DeviceCheck
from slm.training.interruption import Interruption
from slm.training.module import StoryModel
from slm.training.precision import is_native, resolve_precision


class StoryCLI(OptionsCLI):
    """Builds the Trainer with this project's callbacks, runs the verb, and has the last word."""

    @cached_property
    def curves(self) -> TrainingCurves:
        """The figures of the run, which the terminal and the curves share."""
        return TrainingCurves()

    # ---- instances ----------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Builds model, data and Trainer.

        Raises:
            UserError: An option is out of range.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UserError.from_value_error(
                error, f"slm {self.verb} --help explains the options"
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer: precision, intervals, logger and callbacks."""
        options = self.config_init[self.verb].trainer
        device = find_device(options.accelerator).type
        kwargs["precision"] = precision = resolve_precision(options.precision, device)
        if not is_native(precision, device):
            rank_zero_only(print)(
                f"Slow       {precision} is not native on this {device}; "
                "--trainer.precision auto takes the fastest format that is",
                file=sys.stderr,
            )
        kwargs["enable_progress_bar"] = False
        kwargs["callbacks"] = list(options.callbacks or [])
        if self.verb == "fit":
            kwargs["val_check_interval"] = (
                self.config.fit.val_interval * options.accumulate_grad_batches
            )
            if options.logger in (None, True):
                root = Path(options.default_root_dir or ".").resolve()
                kwargs["logger"] = self._make_logger(root)
            if options.plugins is None:
                kwargs["plugins"] = [AtomicCheckpointIO()]
            if self.budget:
                kwargs["callbacks"].append(self.budget)
            kwargs["callbacks"] += watchers(self.curves, options.enable_progress_bar is not False)
            kwargs["callbacks"] += [Pictures(), RunRecord()]
            if self.config.fit.check_device:
                kwargs["callbacks"].append(DeviceCheck())
            if options.enable_checkpointing is not False:
                kwargs["callbacks"] += [
                    best_checkpoint(),
                    LastCheckpoint(self.config.fit.save_interval),
                ]
        else:
            if options.logger is None:
                kwargs["logger"] = False
                kwargs["enable_checkpointing"] = False
            if options.enable_progress_bar is not False:
                kwargs["callbacks"].append(ProgressLine(self.curves))
        return super().instantiate_trainer(**kwargs)

    def _make_logger(self, root: Path) -> TensorBoardLogger:
        version = self.resume_run.name if self.resume_run else None
        # Points that a crashed run logged behind its last checkpoint are going to be logged again.
        purge_step = self.checkpoint.step + 1 if version and self.checkpoint else None
        return TensorBoardLogger(
            root,
            name="lightning_logs",
            version=version,
            default_hp_metric=False,
            purge_step=purge_step,
        )

    def _run_subcommand(self, subcommand: str) -> None:
        """Calls the method of the verb's name."""
        getattr(self, subcommand)(**self._prepare_subcommand_kwargs(subcommand))

    # ---- the verbs ----------------------------------------------------------------------

    def fit(self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None) -> None:
        """Trains; after Ctrl-C says how to go on.

        Raises:
            KeyboardInterrupt: Training was interrupted; `last.ckpt` has been written.
        """

        def say(*_: Any) -> None:
            if self.trainer.is_global_zero:
                print(describe_run(self.trainer, model, datamodule), file=sys.stderr)
                if self.checkpoint is not None:
                    step = self.checkpoint.step
                    print(f"Resuming   {self.checkpoint.path} at step {step:,}", file=sys.stderr)
                elif model.init_from:
                    print(f"Weights    from {model.init_from}", file=sys.stderr)

        if model.init_from:
            initial = self.initial or open_checkpoint(Path(model.init_from).expanduser())
            check_vocabulary(datamodule, initial)
            initial.check_shape(asdict(model.gpt))
        check_vocabulary_size(datamodule, model.gpt.vocab_size)
        # When the data are prepared and everything fits, not before.
        self.trainer.callbacks.insert(0, LambdaCallback(on_train_start=say))  # type: ignore[attr-defined]
        with self._interruptible(), Interruption() as interruption:
            self.trainer.callbacks.insert(0, interruption)  # type: ignore[attr-defined]
            with (
                nullcontext() if self.budget else too_large_noticed(self.trainer, model, datamodule)
            ):
                self.trainer.fit(
                    model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True
                )
        if self.trainer.is_global_zero:
            conclude_fit(self.trainer, self.config.fit.report)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Turns Lightning's exit after Ctrl-C back into the interrupt, with a word on it."""
        try:
            yield
        except SystemExit:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            step = self.trainer.global_step
            if self.verb != "fit" or not step:
                print("\nInterrupted.", file=sys.stderr)
            else:
                root = self.config.fit.trainer.default_root_dir
                place = f" --trainer.default_root_dir {root}" if root else ""
                print(
                    f"\nInterrupted at step {step:,}. To go on: slm fit --ckpt_path last{place}",
                    file=sys.stderr,
                )
                if run := run_folder(self.trainer):
                    print(f"To look at it: slm report {shortened(run)}", file=sys.stderr)
            raise KeyboardInterrupt from None

    def validate(
        self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None
    ) -> None:
        """Measures on the validation split and prints the figures."""
        with self._interruptible():
            self.trainer.validate(
                model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True
            )
        self._report("val", ckpt_path)

    def test(self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None) -> None:
        """Measures as `validate` does, under the name of `test`."""
        with self._interruptible():
            self.trainer.test(
                model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True
            )
        self._report("test", ckpt_path)

    def _report(self, prefix: str, ckpt_path: str | None) -> None:
        if self.trainer.is_global_zero:
            options = self.config[self.verb]
            share = options.trainer[f"limit_{prefix}_batches"]
            path = Path(options.json) if options.json else None
            print_figures(self.trainer, self.datamodule, prefix, ckpt_path, share, path)
