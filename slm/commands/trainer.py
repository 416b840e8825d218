"""fit, validate, test, predict and prepare: LightningCLI on this project's model and data."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# jsonargparse 4.49+ deprecates calls that Lightning's own CLI makes; it reads this on import.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import jsonargparse
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from torch.utils.data import DataLoader

from slm.cli import VERBS
from slm.commands.conclusion import conclude_fit, describe_run
from slm.commands.parser import StoryParser, tidy_help
from slm.commands.stories import StoryWriter, add_story_arguments, story_requests
from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.model import SamplingOptions
from slm.training.callbacks import LastStep, ProgressLine, SampledStories, TrainingCurves
from slm.training.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from slm.training.checkpointing import LastCheckpoint, best_checkpoint
from slm.training.module import StoryModel
from slm.training.precision import Precision, resolve_precision

# Field docstrings of the option dataclasses become the help of their options.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


# What the help of a verb shows: beginnings of option names.
_DEVICE = (
    "config",
    "print_config",
    "ckpt_path",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.default_root_dir",
)
_TELLING = ("prompt", "num_samples", "out", *SamplingOptions.__dataclass_fields__)
HELP_SHOWS: dict[str, tuple[str, ...]] = {
    "fit": ("",),
    "validate": ("data", "json", "trainer.limit_val_batches", *_DEVICE),
    "test": ("data", "json", "trainer.limit_test_batches", *_DEVICE),
    "predict": (*_TELLING, *_DEVICE),
}


class SaveConfig(SaveConfigCallback):
    """Saves the run's config beside its checkpoints, and leaves an earlier one alone."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """A resumed run gets `config-2.yaml`, and so on."""
        folder = Path(trainer.log_dir or ".")
        if trainer.is_global_zero:
            taken = len(list(folder.glob("config*.yaml")))
            self.config_filename = f"config-{taken + 1}.yaml" if taken else "config.yaml"
        super().setup(trainer, pl_module, stage)


class StoryCLI(LightningCLI):
    """LightningCLI with this project's options, defaults, callbacks and last words.

    What a checkpoint says of its model and data stands in for the defaults: a config file and
    the command line win over it, as they do over any default.

    Args:
        verb: One of Trainer's four, or `prepare`.
        words: The command line behind the verb.
        checkpoint: The opened checkpoint that `--ckpt_path` names, if any.
        resume_run: Folder of the run to go on in, if any.
    """

    def __init__(
        self,
        verb: str,
        words: Sequence[str],
        checkpoint: Checkpoint | None = None,
        resume_run: Path | None = None,
    ) -> None:
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
                verb: {
                    "usage": f"slm {verb} [--config FILE] [--section.option value ...]",
                    "description": VERBS[verb][0].upper() + VERBS[verb][1:] + ".",
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
        """The one verb asked for: building all four parsers would only cost time."""
        skip = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {self.verb: skip | {"return_predictions", "verbose", "weights_only"}}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Builds the verb's parser, and then its help."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        tidy_help(parser, HELP_SHOWS[subcommand])
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
        parser.link_arguments("model.gpt.block_size", "data.block_size")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        if self.verb in ("validate", "test"):
            parser.add_argument(
                "--json", type=str | None, default=None, help="Also write the figures to a file."
            )
        if self.verb == "predict":
            add_story_arguments(parser)
        if self.checkpoint is not None:
            parser.set_defaults(
                _flatten(self.checkpoint.model_options, "model.")
                | _flatten(self.checkpoint.data_options, "data.")
            )

    # ---- instances ----------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Checks what can be checked before anything is built.

        Raises:
            UserError: Options that contradict each other or the checkpoint.
        """
        options = self.config[self.verb]
        if self.checkpoint is not None:
            saved = self.checkpoint.model_options["gpt"]
            for name, value in options.model.gpt.as_dict().items():
                if name != "dropout" and value != saved[name]:
                    raise UserError(
                        f"--model.gpt.{name} {value} for a checkpoint with {name} {saved[name]}",
                        f"the shape of the checkpoint {self.checkpoint.path}",
                        f"leave --model.gpt.{name} out, or train a new model without --ckpt_path",
                    )
        if self.verb != "fit":
            return
        if options.trainer.max_steps < 1 and not options.trainer.fast_dev_run:
            raise UserError(
                f"--trainer.max_steps {options.trainer.max_steps}",
                "the number of optimizer steps to train; the learning rate is planned by it",
                "--trainer.max_steps 1000, or a config: --config configs/quickstart.yaml",
            )
        for name in ("val_interval", "save_interval"):
            if options[name] < 1:
                raise UserError(f"--{name} {options[name]}", "1 or more", f"--{name} 500")
        if options.trainer.val_check_interval is not None:
            raise UserError(
                f"--trainer.val_check_interval {options.trainer.val_check_interval}, which "
                "counts micro-batches",
                "the interval in optimizer steps",
                "--val_interval STEPS",
            )
        if self.checkpoint is not None and self.checkpoint.step >= options.trainer.max_steps:
            raise UserError(
                f"{self.checkpoint.path} has already been trained for {self.checkpoint.step} steps",
                f"more steps to train than that, not --trainer.max_steps "
                f"{options.trainer.max_steps}",
                f"--trainer.max_steps {2 * self.checkpoint.step}",
            )

    def instantiate_classes(self) -> None:
        """Builds model, data and Trainer.

        Raises:
            UserError: An option is out of range.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            message, _, wish = str(error).partition("; ")
            raise UserError(
                message, wish or "options in range", f"slm {self.verb} --help explains them"
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
                kwargs["logger"] = self._make_logger(Path(options.default_root_dir or "."))
            kwargs["callbacks"] += [self.curves, LastStep(), SampledStories()]
            if options.enable_checkpointing is not False:
                kwargs["callbacks"] += [
                    best_checkpoint(),
                    LastCheckpoint(self.config.fit.save_interval),
                ]
        elif options.logger is None:
            kwargs["logger"] = False
            kwargs["enable_checkpointing"] = False
        if options.enable_progress_bar is not False and self.verb != "predict":
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
        if self.trainer.is_global_zero:
            print(describe_run(self.trainer, model, datamodule), file=sys.stderr)
            if self.checkpoint is not None:
                step = self.checkpoint.step
                print(f"Resuming   {self.checkpoint.path} at step {step:,}", file=sys.stderr)
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            root = self.config.fit.trainer.default_root_dir
            place = f" --trainer.default_root_dir {root}" if root else ""
            step = self.trainer.global_step
            print(
                f"\nInterrupted at step {step:,}. To go on: slm fit --ckpt_path last{place}"
                if step
                else "\nInterrupted before the first step.",
                file=sys.stderr,
            )
            raise KeyboardInterrupt from None
        if self.trainer.is_global_zero:
            conclude_fit(self.trainer)

    def validate(
        self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None
    ) -> None:
        """Measures on the validation split and prints the figures."""
        self.trainer.validate(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True
        )
        self._print_figures("val", ckpt_path)

    def test(self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None) -> None:
        """Measures as `validate` does, under the name of `test`."""
        self.trainer.test(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True
        )
        self._print_figures("test", ckpt_path)

    def _print_figures(self, prefix: str, ckpt_path: str | None) -> None:
        if not self.trainer.is_global_zero:
            return
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        facts = self.datamodule.manifest.splits["validation"]
        print(
            f"checkpoint     {ckpt_path}\n"
            f"data           validation split of {self.datamodule.source.spec}: "
            f"{facts.stories:,} stories, {facts.tokens:,} tokens\n"
            f"{prefix + '_loss':<20}{figures[f'{prefix}_loss']:.4f} nats per token\n"
            f"{prefix + '_perplexity':<20}{figures[f'{prefix}_perplexity']:.3f}\n"
            f"{prefix + '_bits_per_byte':<20}{figures[f'{prefix}_bits_per_byte']:.4f}"
        )
        if path := self.config[self.verb].json:
            Path(path).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    def predict(self, model: StoryModel, ckpt_path: str | None = None, **_: Any) -> None:
        """Tells stories: to the terminal as they come, or into a JSON-lines file."""
        options = self.config_init.predict
        requests = story_requests(options)
        writer = StoryWriter(options.out, len(requests), str(ckpt_path))
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(
            model,
            dataloaders=DataLoader(requests, batch_size=None),  # type: ignore[arg-type]
            ckpt_path=ckpt_path,
            return_predictions=False,
            weights_only=True,
        )


class PrepareCLI(StoryCLI):
    """The options of `fit`, of which only the data are used."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__("fit", words)

    def before_instantiate_classes(self) -> None:
        """No Trainer is built, so its options need no check."""

    def instantiate_trainer(self, **_: Any) -> Any:
        """None is needed."""

    def fit(self, model: StoryModel, datamodule: StoryData, ckpt_path: str | None = None) -> None:
        """Prepares the data and prints what came out."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        print(f"{datamodule.folder}, from {datamodule.source.spec}")
        for split, facts in datamodule.manifest.splits.items():
            print(
                f"{split:<11}{facts.stories:>12,} stories {facts.tokens:>14,} tokens "
                f"{facts.bytes:>15,} bytes  {facts.bytes / facts.tokens:.2f} bytes per token"
            )


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Runs one of the five verbs.

    Args:
        verb: fit, validate, test, predict or prepare.
        words: Its command line.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    _hush()
    try:
        if verb == "prepare":
            PrepareCLI(words)
            return 0
        words, checkpoint, resume_run = resolve_checkpoint(verb, list(words))
        StoryCLI(verb, words, checkpoint, resume_run)
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise UserError(
            " ".join(str(error).split()),
            "Trainer options that fit this machine and each other",
            f"slm {verb} --help lists them; without any, the machine's best device is used",
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            str(error).split(". ")[0],
            "a batch that fits into the device's memory",
            "halve --data.batch_size and double --trainer.accumulate_grad_batches: the same "
            "batch in smaller portions",
        ) from error
    except OSError as error:
        raise UserError(
            str(error),
            "files that can be read and written",
            "check the path, its permissions and the free space",
        ) from error
    return 0


def resolve_checkpoint(
    verb: str, words: list[str]
) -> tuple[list[str], Checkpoint | None, Path | None]:
    """Finds the checkpoint that a command line means.

    `--ckpt_path` takes a file, `last` or `best`: of the newest run under
    `--trainer.default_root_dir`. Without it `fit` starts anew, the other verbs take the best.
    `fit --ckpt_path last` goes on in that run's folder and, without `--config`, with its config.

    Returns:
        The command line with the file's path in it, the opened checkpoint, and the folder of the
        run to go on in.

    Raises:
        UserError: There is no such checkpoint.
    """
    wish = _take_option(words, "--ckpt_path")
    root = Path(_option(words, "--trainer.default_root_dir") or ".") / "lightning_logs"
    if wish in (None, "null", "None"):
        if verb == "fit" or {"-h", "--help", "--print_config"} & set(words):
            return words, None, None
        wish = "best"
        path = newest_checkpoint(root, "best.ckpt")
        print(f"No --ckpt_path given; taking the best of the newest run: {path}", file=sys.stderr)
    elif wish in ("last", "best"):
        path = newest_checkpoint(root, f"{wish}.ckpt")
    else:
        path = Path(wish).expanduser()
    checkpoint = open_checkpoint(path)
    run = path.resolve().parent.parent if verb == "fit" and wish == "last" else None
    if run and not any(word.partition("=")[0] in ("-c", "--config") for word in words):
        saved = sorted(run.glob("config*.yaml"), key=lambda path: path.stat().st_mtime)
        words = ["--config", str(saved[-1] if saved else run / "config.yaml"), *words]
    return [*words, f"--ckpt_path={path.resolve()}"], checkpoint, run


def _option(words: Sequence[str], name: str) -> str | None:
    """The value of an option on a command line, the last if there are several."""
    value = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def _take_option(words: list[str], name: str) -> str | None:
    """`_option`, and removes the option from the list."""
    value = _option(words, name)
    for index in reversed(range(len(words))):
        if words[index] == name:
            del words[index : index + 2]
        elif words[index].startswith(f"{name}="):
            del words[index]
    return value


def _flatten(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    """{"gpt": {"n_layer": 6}} to {"model.gpt.n_layer": 6}."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _hush() -> None:
    """Leaves out what Lightning says that a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # loading a batch costs microseconds
        ".*callbacks used to create the checkpoint need to be provided.*",  # not to measure or tell
        ".*exists and is not empty.*",  # a resumed run goes on in its own folder
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # within Lightning
    ):
        warnings.filterwarnings("ignore", message)
