"""Which checkpoint a run resumes or starts from."""

import os
from pathlib import Path

import yaml

from slm.commands.lookup import open_named
from slm.commands.parsing.arguments import NULL, Arguments
from slm.commands.parsing.configs import read_config
from slm.commands.parsing.options import RootOptions
from slm.errors import UserError
from slm.files import quoted
from slm.processes import process_rank
from slm.training.checkpoint import Checkpoint, open_checkpoint, update_options
from slm.training.runs import Run, RunClaim

_CHOSEN = "SLM_CHECKPOINT"
"""Passes the chosen checkpoint to the processes that the first one starts."""


def resolve_checkpoint(
    verb: str, arguments: Arguments, claim: RunClaim
) -> tuple[Arguments, Checkpoint | None]:
    """Opens the checkpoint that `--ckpt_path` names.

    Without it `fit` begins a new run, the other verbs take the best of the newest one. `fit
    --ckpt_path last` continues in that run's folder, which this process claims; `fit` with any
    checkpoint of a run takes that run's config if none is given.

    Returns:
        The arguments with the file's path, and the opened checkpoint.
    """
    named = arguments.take("--ckpt_path") if "--ckpt_path" in arguments.given else "null"
    if named is None:
        raise UserError(
            "--ckpt_path without a value", "a file, last or best", f"slm {verb} --ckpt_path last"
        )
    named = None if named in NULL else named
    logs = RootOptions(str(arguments.trainer_option("default_root_dir") or ".")).logs
    only_prints = {"-h", "--help", "--print_config"} & arguments.given
    if named is None and (verb == "fit" or only_prints):
        return arguments, None
    chosen = os.environ.get(_CHOSEN) if process_rank() else None
    if chosen and named in ("last", "best"):
        checkpoint = open_checkpoint(Path(chosen))
    elif verb == "fit":
        newest = named in ("last", "best")
        path = Run.newest_checkpoint(logs, str(named)) if newest else Path(str(named)).expanduser()
        path = path.absolute()
        if process_rank() == 0 and named == "last":
            claim.resume(Run.of(path).folder)  # before opening it: another process may replace it
        checkpoint = open_checkpoint(path)
        needed = ("callbacks", "loops", "lr_schedulers", "optimizer_states")
        missing = [name for name in needed if not checkpoint.contents.get(name)]
        if missing:
            raise UserError(
                f"{path} has no {', '.join(missing)}",
                "a full checkpoint, with the optimizer and loop state that resuming needs",
                f"start a new run from its weights: --model.init_from {quoted(path)}",
            )
    else:
        checkpoint = open_named(named, logs)
    if process_rank() == 0:
        checkpoint.make_model()  # checks the weights, with better messages than the Trainer's
        os.environ[_CHOSEN] = str(checkpoint.path)
    configs = Run.of(checkpoint.path).configs()
    if verb == "fit" and configs and "--config" not in arguments.given:
        arguments = arguments.with_config(_current(configs[-1]))
    return Arguments([*arguments, f"--ckpt_path={checkpoint.path}"]), checkpoint


def _current(config: Path) -> str:
    """A run's config: its path, or its contents without options that an older version had."""
    options = read_config(config)
    gpt = options.get("model", {}).get("gpt", {})
    before = dict(gpt)
    update_options(gpt, config)
    return str(config) if gpt == before else yaml.safe_dump(options)


def initial_checkpoint(
    verb: str, arguments: Arguments, resumed: Checkpoint | None
) -> Checkpoint | None:
    """The checkpoint that `--model.init_from` names on the command line, unless one is resumed."""
    path = arguments.get("--model.init_from")
    if verb != "fit" or resumed or path in NULL:
        return None
    return open_checkpoint(Path(str(path)).expanduser())
