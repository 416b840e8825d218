"""LightningCLI with this project's options, checks, callbacks and messages."""

import os
from pathlib import Path
from typing import Any

# jsonargparse 4.49+ deprecates calls that Lightning's own CLI makes.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script

from slm.commands.fit.options import FitOptions, check_data
from slm.commands.fit.out_of_memory import SmallerBatch, StageAtError, smaller_batch
from slm.commands.fit.parser import RunOptions, StoryParser, add_core_options, tidy_help
from slm.commands.fit.plan import plan_run
from slm.commands.fit.summary import RunHeader, interruptible, print_figures, print_summary
from slm.commands.fit.trainer import DEFAULTS, SaveConfig, fit_arguments, measure_arguments
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.errors import output_path
from slm.commands.parsing.options import add_options, flatten
from slm.data.datamodule import StoryData
from slm.errors import Stopped, UserError, user_errors
from slm.files import quoted
from slm.model import GPTConfig
from slm.processes import observe_children, process_rank, run_is_over, watch_parent
from slm.signals import handled_by, raise_stopped
from slm.training.callbacks.interruption import Interruption
from slm.training.callbacks.time_budget import TimeBudget
from slm.training.checkpoint import Checkpoint, incompatible, open_checkpoint
from slm.training.cluster import PATIENCE
from slm.training.memory import return_freed_memory
from slm.training.module import StoryModel
from slm.training.runs import RunClaim
from slm.verbs import VERBS

# Field docstrings of the option dataclasses become the help of their options.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class StoryCLI(LightningCLI):
    """Parses the options, builds model, data and Trainer, and runs the verb.

    The model and data options in `checkpoint`, which `--ckpt_path` names, replace the defaults; of
    `initial`, which `--model.init_from` names, only the model's shape and the vocabulary do. A
    config file and the command line override them. With `choose_size`, `--budget` may choose the
    model's size.
    """

    def __init__(
        self,
        verb: str,
        arguments: Arguments,
        claim: RunClaim,
        checkpoint: Checkpoint | None = None,
        initial: Checkpoint | None = None,
        choose_size: bool = False,
    ) -> None:
        self.verb = verb
        self.given = arguments.given
        self.claim = claim
        self.checkpoint = checkpoint
        self.initial = initial
        self.choose_size = choose_size
        self.budget: TimeBudget | None = None
        usage = f"slm {verb} [--config FILE] [--section.option value ...]"
        super().__init__(
            StoryModel,
            StoryData,
            args=[verb, *arguments],
            parser_class=StoryParser,
            parser_kwargs={
                "prog": "slm",
                "allow_abbrev": False,  # a misspelt option is no abbreviation
                verb: {"usage": usage, "description": VERBS[verb].description},
            },
            save_config_callback=SaveConfig if verb == "fit" else None,
            seed_everything_default=1337,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=DEFAULTS,
        )

    # ---- options ------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one verb that is used: building the others' parsers would only take time."""
        skip = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {self.verb: skip | {"verbose", "weights_only"}}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        tidy_help(parser, self.verb)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses without LightningCLI's warning about a non-empty sys.argv."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: the checkpoint's options are defaults here, not overrides."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the model's, the data's and the Trainer's options."""
        add_core_options(parser)
        parser.set_defaults({f"trainer.{key}": v for key, v in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run, and the checkpoint's defaults."""
        add_options(parser, RunOptions, hidden=("json",) if self.verb == "fit" else ())
        parser.link_arguments("model.gpt.block_size", "data.block_size")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        if source := self.checkpoint or self.initial:
            options: dict[str, Any] = {"model": {"gpt": source.model_options["gpt"]}, "data": {}}
            if self.checkpoint is not None:
                options = {"model": source.model_options, "data": source.data_options}
            options["data"] |= source.tokenizer_options
            try:
                parser.set_defaults(flatten(options))
            except KeyError as error:
                raise incompatible(source.path, error.args[0]) from error

    # ---- checks and plans ---------------------------------------------------------------

    def _set_seed(self) -> None:
        seed = self.config[self.verb].seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(
                f"--seed_everything {str(seed).lower()}",
                "an integer from 0 to 2^32 - 1; it seeds the weights and the batches",
                "--seed_everything 1337",
            )
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Checks what can be checked before anything is built, and plans the budget."""
        options = self.config[self.verb]
        if self.checkpoint is not None:
            self._set_options(self.checkpoint.tokenizer_replacement(options.data.tokenizer))
            self._set_options({"model.init_from": None})  # its weights have been trained further
            self.checkpoint.check_shape(GPTConfig(**options.model.gpt.as_dict()))
        elif options.ckpt_path:
            raise UserError(
                f"ckpt_path {options.ckpt_path} in a config file",
                "a checkpoint named on the command line",
                f"remove it from the file and add --ckpt_path {quoted(options.ckpt_path)}",
            )
        if self.verb != "fit":
            output_path("--json", options.json)
        else:
            fit_options = FitOptions.of(options, self.given)
            self.budget, changed = plan_run(
                fit_options, self.checkpoint, self.initial, self.choose_size
            )
            self._set_options(changed)

    def _set_options(self, options: dict[str, Any]) -> None:
        """Replaces options: the only place that changes what was parsed."""
        for name, value in options.items():
            self.config[self.verb][name] = value

    # ---- instances ----------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Builds model, data and Trainer."""
        with user_errors(f"slm {self.verb} --help explains the options"):
            super().instantiate_classes()
            if self.checkpoint:
                self.checkpoint.find_moved_data(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer."""
        options = self.config_init[self.verb]
        if self.verb == "fit":
            step = self.checkpoint.step if self.checkpoint else 0
            kwargs |= fit_arguments(options, self.claim, step, self.budget)
            self.interruption, self.stage = Interruption(), StageAtError()
            first = [self.interruption, RunHeader(self.checkpoint)]
            kwargs["callbacks"] = [*first, *kwargs["callbacks"], self.stage]
        else:
            kwargs |= measure_arguments(options)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise UserError(  # Lightning checks few of its options
                f"the Trainer refuses its options: {' '.join(str(error).split())}",
                "Trainer options that fit this machine and each other",
                f"slm {self.verb} --help lists them",
            ) from error
        if (rank := process_rank()) and trainer.world_size == 1:
            raise UserError(
                f"the environment says that this is process {rank} of several, and the Trainer is "
                "to use one device",
                "--trainer.devices as many as processes, or no such variables",
                "if they are left over: unset RANK LOCAL_RANK WORLD_SIZE TORCHELASTIC_RUN_ID",
            )
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._timeout = PATIENCE
        return trainer

    # ---- the verbs ----------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit":
            self._fit()
        else:
            self._measure()

    def _fit(self) -> None:
        """Trains, with smaller micro-batches if the memory does not suffice; then summarises."""
        options = FitOptions.of(self.config.fit, self.given)
        initial = self.initial
        if self.model.init_from:
            initial = initial or open_checkpoint(Path(self.model.init_from).expanduser())
        check_data(options, self.datamodule, initial)
        subprocess_script._launch_process_observer = observe_children  # type: ignore[attr-defined, assignment]
        watch_parent()
        while smaller := self._train():
            self._restart(smaller)
        with handled_by(raise_stopped):
            if self.trainer.is_global_zero:
                print_summary(self.trainer, self.config.fit)

    def _train(self) -> SmallerBatch | None:
        """Trains to the end; returns how to continue if the memory did not suffice."""
        path = self.checkpoint.path if self.checkpoint else None
        with interruptible(self.trainer, self.config.fit), self.interruption:
            try:
                self.trainer.fit(
                    self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True
                )
            except RuntimeError as error:
                smaller = None
                if self.budget is None:
                    smaller = smaller_batch(error, self.trainer, self.datamodule, self.stage)
                if smaller is None:
                    raise
                self.model.release_memory()
                return smaller
            run_is_over()
            if self.interruption.number:  # after the last micro-batch
                raise Stopped(self.interruption.number)
        return None

    def _restart(self, smaller: SmallerBatch) -> None:
        """Builds everything again with smaller micro-batches."""
        del self.trainer, self.model, self.datamodule, self.interruption, self.stage
        del self.config_init
        return_freed_memory()
        if smaller.checkpoint:
            self.checkpoint = open_checkpoint(smaller.checkpoint)
            self._set_options({"model.init_from": None})  # its weights have been trained further
        self._set_options({"data.batch_size": smaller.batch_size})
        self._set_options({"trainer.accumulate_grad_batches": smaller.accumulate})
        self._set_seed()
        self.instantiate_classes()

    def _measure(self) -> None:
        """Measures on the validation split and prints the figures."""
        options = self.config[self.verb]
        path = self.checkpoint.path if self.checkpoint else None
        with interruptible(self.trainer, options):
            getattr(self.trainer, self.verb)(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=path,
                verbose=False,
                weights_only=True,
            )
        if self.trainer.is_global_zero:
            print_figures(self.verb, self.trainer, self.datamodule, path, options)
