"""fit, validate and test: LightningCLI on this project's model and data."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

# jsonargparse 4.49+ deprecates calls that Lightning's own CLI makes; it reads this on import.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus

from slm.commands.budget import check_budget, plan_budget, resume_budget
from slm.commands.checks import (
    check_against_checkpoint,
    check_effects,
    check_plan,
    check_vocabulary,
    check_vocabulary_size,
)
from slm.commands.conclusion import conclude_fit, describe_run, print_figures
from slm.commands.halving import too_large_noticed
from slm.commands.parser import HELP_SHOWS, StoryParser, tidy_help
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.reports.pictures import Pictures
from slm.reports.record import RunRecord
from slm.training.budget import TimeBudget
from slm.training.callbacks import ProgressLine, TrainingCurves, watchers
from slm.training.checkpoint import Checkpoint, open_checkpoint
from slm.training.checkpointing import AtomicCheckpointIO, LastCheckpoint, best_checkpoint
from slm.training.interruption import Interruption
from slm.training.module import StoryModel
from slm.training.precision import Precision, resolve_precision
from slm.verbs import VERBS

# Field docstrings of the option dataclasses become the help of their options.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class SaveConfig(SaveConfigCallback):
    """Saves the run's config beside its checkpoints, and leaves an earlier one alone."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """A resumed run gets `config-2.yaml`, and so on."""
        folder = Path(trainer.log_dir or ".")
        if trainer.is_global_zero:
            taken = len(list(folder.glob("config*.yaml")))
            self.config_filename = f"config-{taken + 1}.yaml" if taken else "config.yaml"
        # Where this run came from is no part of how to train another.
        self.config = self.config.clone()
        self.config.ckpt_path = None
        super().setup(trainer, pl_module, stage)


class StoryCLI(LightningCLI):
    """LightningCLI with this project's options, defaults, callbacks and last words.

    What a checkpoint says of its model and data stands in for the defaults: a config file and
    the command line win over it, as they do over any default.

    Args:
        verb: fit, validate or test.
        words: The command line behind the verb.
        checkpoint: The opened checkpoint that `--ckpt_path` names, if any.
        resume_run: Folder of the run to go on in, if any.
        initial: The opened checkpoint that `--model.init_from` names, if any; its shape and
            vocabulary stand in for those defaults.
        choose_size: Whether `--budget` may choose the model's size.
    """

    def __init__(
        self,
        verb: str,
        words: Sequence[str],
        checkpoint: Checkpoint | None = None,
        resume_run: Path | None = None,
        initial: Checkpoint | None = None,
        choose_size: bool = False,
    ) -> None:
        self.choose_size = choose_size
        self.given = {word.partition("=")[0] for word in words}
        self.budget: TimeBudget | None = None
        self.initial = initial
        self.verb = verb
        self.checkpoint = checkpoint
        self.resume_run = resume_run
        self.curves = TrainingCurves()
        super().__init__(
            StoryModel,
            StoryData,
            args=[verb, *words],
            parser_class=StoryParser,
            parser_kwargs={
                "prog": "slm",
                "allow_abbrev": False,  # a misspelt option is no abbreviation
                verb: {
                    "usage": f"slm {self.verb} [--config FILE] [--section.option value ...]",
                    "description": VERBS[self.verb][0].upper() + VERBS[self.verb][1:] + ".",
                },
            },
            save_config_callback=SaveConfig if verb == "fit" else None,
            seed_everything_default=1337,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "max_epochs": -1,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "gradient_clip_val": 1.0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
            },
        )

    # ---- options ------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one verb asked for: to build the others' parsers would only cost time."""
        skip = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {self.verb: skip | {"verbose", "weights_only"}}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Builds the verb's parser, and then its help."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        tidy_help(parser, HELP_SHOWS[self.verb])
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses without LightningCLI's warning about a non-empty sys.argv."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's options are defaults here, not overrides."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the model's, the data's and the Trainer's options, in this order."""
        parser.add_lightning_class_args(StoryModel, "model")
        parser.add_lightning_class_args(StoryData, "data")
        parser.add_class_arguments(
            Trainer,
            "trainer",
            instantiate=False,
            fail_untyped=False,
            sub_configs=True,
            skip={"precision"},
        )
        parser.add_argument(
            "--trainer.precision",
            type=Precision,
            default="auto",
            help="Number format; `auto` takes bf16-mixed where the device is good at it, else "
            "16-mixed on CUDA and 32-true elsewhere.",
        )
        parser.set_defaults({f"trainer.{key}": v for key, v in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to one verb, links, and the checkpoint's defaults.

        Every verb understands every config, so that one file serves them all; the help of a verb
        shows what matters to it.
        """
        parser.add_argument(
            "--val_interval",
            type=int,
            default=500,
            help="Optimizer steps between two validations; the last step gets one anyway.",
        )
        parser.add_argument(
            "--save_interval",
            type=int,
            default=500,
            help="Optimizer steps between two writings of last.ckpt.",
        )
        parser.add_argument(
            "--budget",
            type=str | None,
            default=None,
            help="Time to train for, such as 20m or 1h30m, in place of trainer.max_steps: a short "
            "measurement plans micro-batch, accumulation, precision and compile, and, where no "
            "config is named, the model's size; the learning rate ends when the time does.",
        )
        parser.add_argument(
            "--report",
            type=bool,
            default=True,
            help="Whether fit ends by writing report.html into the run's folder.",
        )
        parser.link_arguments("model.gpt.block_size", "data.block_size")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        if self.verb in ("validate", "test"):
            parser.add_argument(
                "--json", type=str | None, default=None, help="Also write the figures to a file."
            )
        if source := self.checkpoint or self.initial:
            options: dict[str, Any] = {"model": {"gpt": source.model_options["gpt"]}, "data": {}}
            if self.checkpoint is not None:
                options = {"model": source.model_options, "data": source.data_options}
            options["data"] |= source.tokenizer_options
            parser.set_defaults(_flatten(options))

    # ---- instances ----------------------------------------------------------------------

    def _set_seed(self) -> None:
        """Seeds everything, after a look at the seed.

        Raises:
            UserError: The seed is negative.
        """
        seed = self.config[self.verb].seed_everything
        if seed < 0:
            raise UserError(f"--seed_everything {seed}", "0 or more", "--seed_everything 1337")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Checks what can be checked before anything is built.

        Raises:
            UserError: Options that contradict each other or the checkpoint.
        """
        if self.checkpoint is not None:
            self._take_tokenizer(self.checkpoint)
            self.config[self.verb].model.init_from = None  # its own weights are further on
            resuming = self.verb == "fit"
            check_against_checkpoint(self.config[self.verb], self.checkpoint, resuming=resuming)
        elif self.config[self.verb].ckpt_path:
            raise UserError(
                f"ckpt_path {self.config[self.verb].ckpt_path} in a config file",
                "a checkpoint named on the command line",
                f"take it out of the file and add --ckpt_path {self.config[self.verb].ckpt_path}",
            )
        if self.verb == "fit":
            seconds = check_budget(self.config.fit, self.given)
            check_plan(self.config.fit)
            check_effects(self.config.fit, self.given)
            if seconds is not None:
                self.budget = resume_budget(
                    self.checkpoint, seconds, self.config.fit.budget
                ) or plan_budget(
                    self.config.fit,
                    seconds,
                    initial=self.initial,
                    choose_size=self.choose_size,
                    given=self.given,
                )
                self.config.fit.trainer.max_steps = -1

    def _take_tokenizer(self, checkpoint: Checkpoint) -> None:
        """Puts a checkpoint's own vocabulary in place of one to be learnt, or since moved away."""
        data = self.config[self.verb].data
        named = data.tokenizer in ("gpt2", "bpe")
        gone = not named and not Path(data.tokenizer).expanduser().exists()
        own = checkpoint.tokenizer_options
        if gone or (data.tokenizer == "bpe" and own["tokenizer"] != "gpt2"):
            data.tokenizer, data.vocab_size = own["tokenizer"], own["vocab_size"]
        elif data.tokenizer == "gpt2" != own["tokenizer"]:
            checkpoint.check_tokenizer({"name": "gpt2", "n_vocab": 50257, "sha256": "another"})

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
        kwargs["precision"] = resolve_precision(options.precision, options.accelerator)
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


def _flatten(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"gpt": {"n_layer": 6}} to {"gpt.n_layer": 6}."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
