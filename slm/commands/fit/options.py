"""The command line of fit, validate and test: their options, and what is wrong with them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# jsonargparse 4.49+ deprecates calls that Lightning's own CLI makes.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from slm.commands.fit.budget import check_budget, plan_budget, resume_budget
from slm.commands.fit.checks import check_against_checkpoint, check_effects, check_plan
from slm.commands.fit.parser import HELP_SHOWS, StoryParser, tidy_help
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.training.callbacks.time_budget import TimeBudget
from slm.training.checkpoint import Checkpoint
from slm.training.checkpoint_io import OnFailure
from slm.training.module import StoryModel
from slm.training.precision import Precision
from slm.training.runs import RunClaim
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


class OptionsCLI(LightningCLI):
    """LightningCLI with this project's options, defaults and checks.

    What a checkpoint says of its model and data stands in for the defaults: a config file and
    the command line win over it, as they do over any default.

    Args:
        verb: fit, validate or test.
        words: The command line behind the verb.
        claim: Keeps other processes out of the run's folder.
        checkpoint: The opened checkpoint that `--ckpt_path` names, if any.
        initial: The opened checkpoint that `--model.init_from` names, if any; its shape and
            vocabulary stand in for those defaults.
        choose_size: Whether `--budget` may choose the model's size.
    """

    def __init__(
        self,
        verb: str,
        words: Sequence[str],
        claim: RunClaim,
        checkpoint: Checkpoint | None = None,
        initial: Checkpoint | None = None,
        choose_size: bool = False,
    ) -> None:
        self.choose_size = choose_size
        self.given = {word.partition("=")[0] for word in words}
        self.budget: TimeBudget | None = None
        self.initial = initial
        self.verb = verb
        self.checkpoint = checkpoint
        self.claim = claim
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
            "--on_save_error",
            type=OnFailure,
            default="stop",
            help="Whether training stops when a checkpoint cannot be written, for example to a "
            "full disk, or only warns; the earlier checkpoint is kept in both cases.",
        )
        parser.add_argument(
            "--report",
            type=bool,
            default=True,
            help="Whether fit ends by writing report.html into the run's folder.",
        )
        parser.add_argument(
            "--check_device",
            type=bool,
            default=True,
            help="Whether fit compares loss and gradients of a small batch on a GPU with the "
            "CPU's before it begins, and stops if they differ by more than rounding.",
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

    # ---- checks -------------------------------------------------------------------------

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


def _flatten(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"gpt": {"n_layer": 6}} to {"gpt.n_layer": 6}."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
