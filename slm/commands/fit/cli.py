"""fit, validate and test: LightningCLI on this project's model and data."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only

from slm.commands.fit.checks import check_vocabulary, check_vocabulary_size
from slm.commands.fit.options import OptionsCLI
from slm.commands.fit.out_of_memory import too_large_noticed
from slm.commands.fit.summary import describe_run, print_figures, print_summary
from slm.data.datamodule import StoryData
from slm.errors import Stopped, UserError
from slm.hardware import find_device
from slm.processes import observe_children, run_is_over, watch_parent
from slm.reports.page import shortened
from slm.reports.pictures import Pictures
from slm.signals import handled_by, raise_stopped
from slm.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from slm.training.callbacks.curves import TrainingCurves
from slm.training.callbacks.device_check import DeviceCheck
from slm.training.callbacks.interruption import Interruption
from slm.training.callbacks.progress import ProgressLine
from slm.training.callbacks.record import RunRecord, run_folder
from slm.training.callbacks.standard import standard_callbacks
from slm.training.checkpoint import open_checkpoint
from slm.training.checkpoint_io import AtomicCheckpointIO
from slm.training.cluster import PATIENCE, cluster_environments, fsdp2
from slm.training.module import StoryModel
from slm.training.precision import is_native, resolve_precision
from slm.training.run_logger import RunLogger


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
            self._find_moved_data()
        except ValueError as error:
            raise UserError.from_value_error(
                error, f"slm {self.verb} --help explains the options"
            ) from error

    def _find_moved_data(self) -> None:
        """Looks for the checkpoint's data where the whole project may have been moved to."""
        expected = self.checkpoint.entry["data"] if self.checkpoint else None
        if self.checkpoint is None or not expected:
            return
        project = (self.checkpoint.path.parent / "../../..").resolve()
        if found := self.datamodule.find_moved(expected, [Path("data"), project / "data"]):
            rank_zero_only(print)(
                f"Data       {self.datamodule.source} is gone; the same data, by their SHA-256, "
                f"are in {found}",
                file=sys.stderr,
            )

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
        if options.strategy == "fsdp2":
            kwargs["strategy"] = fsdp2(options.devices, options.num_nodes)
        plugins: list[Any] = list(cluster_environments())
        kwargs["enable_progress_bar"] = False
        kwargs["callbacks"] = list(options.callbacks or [])
        if self.verb == "fit":
            kwargs["val_check_interval"] = (
                self.config.fit.val_interval * options.accumulate_grad_batches
            )
            if options.logger in (None, True):
                root = Path(options.default_root_dir or ".").expanduser().absolute()
                step = self.checkpoint.step if self.checkpoint else 0
                kwargs["logger"] = RunLogger(root, self.claim, step)
            if options.plugins is None:
                plugins.append(AtomicCheckpointIO(self.config.fit.on_save_error))
            if self.budget:
                kwargs["callbacks"].append(self.budget)
            kwargs["callbacks"] += standard_callbacks(
                self.curves, options.enable_progress_bar is not False
            )
            kwargs["callbacks"] += [Pictures(), RunRecord()]
            if self.config.fit.check_device:
                kwargs["callbacks"].append(DeviceCheck())
            if options.enable_checkpointing is not False:
                kwargs["callbacks"] += [
                    BestCheckpoint(),
                    LastCheckpoint(self.config.fit.save_interval),
                ]
        else:
            if options.logger is None:
                kwargs["logger"] = False
                kwargs["enable_checkpointing"] = False
            if options.enable_progress_bar is not False:
                kwargs["callbacks"].append(ProgressLine(self.curves))
        if options.plugins is None:
            kwargs["plugins"] = plugins
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise UserError(  # Lightning checks few of its options
                f"the Trainer refuses its options: {' '.join(str(error).split())}",
                "Trainer options that fit this machine and each other",
                f"slm {self.verb} --help lists them",
            ) from error
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._timeout = PATIENCE
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Calls the method of the verb's name."""
        getattr(self, subcommand)(**self._prepare_subcommand_kwargs(subcommand))

    # ---- the verbs ----------------------------------------------------------------------

    def fit(self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None) -> None:
        """Trains; after a signal to stop says how to continue.

        Raises:
            Stopped: A signal has stopped it; `last.ckpt` has been written.
        """

        def say(*_: Any) -> None:
            if self.trainer.is_global_zero:
                print(describe_run(self.trainer, model, datamodule), file=sys.stderr)
                if self.checkpoint is not None:
                    step = self.checkpoint.step
                    print(f"Resuming   {self.checkpoint.path} at step {step:,}", file=sys.stderr)
                elif model.init_from:
                    print(f"Quantization    from {model.init_from}", file=sys.stderr)

        if model.init_from:
            initial = self.initial or open_checkpoint(Path(model.init_from).expanduser())
            check_vocabulary(datamodule, initial)
            initial.check_shape(asdict(model.gpt))
        check_vocabulary_size(datamodule, model.gpt.vocab_size)
        subprocess_script._launch_process_observer = observe_children  # type: ignore[attr-defined, assignment]
        watch_parent()
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
            run_is_over()
            if interruption.number:  # after the last micro-batch
                raise Stopped(interruption.number)
        with handled_by(raise_stopped):
            self._print_summary()

    def _print_summary(self) -> None:
        if self.trainer.is_global_zero:
            print_summary(self.trainer, self.config.fit.report)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Rounds Lightning's exit after a signal back into that signal, and says how to continue.

        Raises:
            Stopped: A signal has stopped the run.
        """
        try:
            yield
        except (SystemExit, KeyboardInterrupt) as error:
            stopped = isinstance(error, KeyboardInterrupt)
            if not stopped and self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            if self.trainer.is_global_zero:
                print(self._how_to_continue(), file=sys.stderr)
            signalled = error if stopped else error.__context__  # Lightning has exited upon it
            raise Stopped(getattr(signalled, "number", signal.SIGINT)) from None

    def _how_to_continue(self) -> str:
        step = self.trainer.global_step
        if self.verb != "fit" or not step:
            return "\nInterrupted before the first step; the same command begins again."
        run = run_folder(self.trainer)
        if run is None:
            return f"\nInterrupted at step {step:,}."
        last = run / "checkpoints" / "last.ckpt"
        if not last.is_file():
            return f"\nInterrupted at step {step:,}; no checkpoint was to be kept."
        root = self.config.fit.trainer.default_root_dir
        where = f" --trainer.default_root_dir {root}" if root else ""
        if step >= self.trainer.max_steps > 0 and open_checkpoint(last).validated:
            how = "Training is finished."
        else:
            how = f"To continue: slm fit --ckpt_path last{where}"
        return f"\nInterrupted at step {step:,}. {how}\nTo look at it: slm report {shortened(run)}"

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
