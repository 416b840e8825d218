"""What is printed before a run, after it or its interruption, and of measurements."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only

from slm.commands.parsing.errors import output_path
from slm.data.datamodule import StoryData
from slm.errors import Stopped, UserError
from slm.files import json_text, quoted, shortened
from slm.generation.storyteller import PROMPT, example_story
from slm.printable import printable
from slm.reports.figures.curves import draw_loss, read_run
from slm.reports.figures.style import save
from slm.reports.run_report import write_report
from slm.training.callbacks.curves import TrainingCurves, tokens_per_step
from slm.training.callbacks.standard import describe_devices
from slm.training.callbacks.time_budget import format_duration, time_budget
from slm.training.checkpoint import Checkpoint, open_checkpoint
from slm.training.module import StoryModel
from slm.training.run_logger import run_of


class RunHeader(Callback):
    """Prints what is trained, on what, how, where it is saved, and what it continues from."""

    def __init__(self, resumed: Checkpoint | None) -> None:
        self._resumed = None if resumed is None else (resumed.path, resumed.step)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints, now that the data are prepared and everything fits."""
        assert isinstance(pl_module, StoryModel)
        data: StoryData = trainer.datamodule  # type: ignore[attr-defined]
        budget = time_budget(trainer)
        steps = f"{trainer.max_steps:,} steps"
        if budget:
            steps = f"{format_duration(budget.seconds)}, about {budget.steps:,} steps"
        lines = [
            f"Model      {pl_module.model.parameter_counts()}",
            f"Data       {data.source}, in {data.folder}",
            f"Training   {steps} of {tokens_per_step(trainer, data):,} tokens, "
            f"{trainer.precision}, {describe_devices(trainer)}"
            f"{', compiled' if pl_module.compile_model else ''}",
            f"Run        {shortened(_folder(trainer))}",
        ]
        if self._resumed is not None:
            lines.append(f"Resuming   {self._resumed[0]} at step {self._resumed[1]:,}")
        elif pl_module.init_from:
            lines.append(f"Weights    from {pl_module.init_from}")
        print(*lines, sep="\n", file=sys.stderr)


@contextmanager
def interruptible(trainer: Trainer, options: Namespace) -> Iterator[None]:
    """Turns Lightning's exit after a signal back into that signal, and prints how to continue."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not stopped and trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        if trainer.is_global_zero:
            print(_how_to_continue(trainer, options), file=sys.stderr)
        cause = error if stopped else error.__context__  # Lightning has exited because of it
        raise Stopped(getattr(cause, "number", signal.SIGINT)) from None


def _resume(options: Namespace) -> str:
    root = options.trainer.default_root_dir
    where = f" --trainer.default_root_dir {quoted(root)}" if root else ""
    return f"slm fit --ckpt_path last{where}"


def _how_to_continue(trainer: Trainer, options: Namespace) -> str:
    step, run = trainer.global_step, run_of(trainer)
    if trainer.state.fn != "fit" or not step:
        return "\nInterrupted before the first step; the same command starts again."
    if run is None:
        return f"\nInterrupted at step {step:,}."
    last = run.checkpoint("last")
    if not last.is_file():
        return f"\nInterrupted at step {step:,}; checkpoints are turned off."
    if step >= trainer.max_steps > 0 and open_checkpoint(last).validated:
        how = "Training is finished."
    else:
        how = f"To continue: {_resume(options)}"
    folder = shortened(run.folder)
    return f"\nInterrupted at step {step:,}. {how}\nTo look at it: slm report {quoted(folder)}"


def print_summary(trainer: Trainer, options: Namespace) -> None:
    """Draws the loss, prints where everything is, and a story by the best checkpoint."""
    run = _folder(trainer)
    print(f"\nRun        {shortened(run)}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TrainingCurves):
            tokens = callback.latest.get("tokens_seen", 0.0) / 1e6
            time = format_duration(callback.seconds)
            print(f"Trained    {time} from the first step to the last, {tokens:,.2f} M tokens seen")
    curves = read_run(run) if trainer.loggers and run.is_dir() else None
    if curves and (figure := draw_loss([curves])):
        print(f"Loss       {shortened(save(figure, run / 'loss.png'))}")
        print(f"Curves     tensorboard --logdir {quoted(shortened(run.parent))}")
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if trainer.global_step < trainer.max_steps:
        print(
            f"Stopped    at step {trainer.global_step:,} of {trainer.max_steps:,}. "
            f"To continue: {_resume(options)}"
        )
    if path:
        best = shortened(Path(path))
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        loss = "" if score is None else f" (val_loss {float(score):.4f})"
        print(f"Best       {best}{loss}")
        print(f'Stories    slm predict --ckpt_path {quoted(best)} --prompt "{PROMPT}"')
    else:
        print("Best       none: there was no validation, or checkpoints are turned off")
    if curves and options.report:
        print(f"Report     {shortened(write_report(run, curves=curves))}")
    if path:
        checkpoint = open_checkpoint(Path(path))
        story = example_story(checkpoint.make_model(), checkpoint.make_tokenizer())
        print(f"\nA story by the best checkpoint:\n\n{printable(story)}")


def print_figures(
    verb: str, trainer: Trainer, data: StoryData, checkpoint: Path | None, options: Namespace
) -> None:
    """Prints what `validate` or `test` has measured on the validation split."""
    prefix = "val" if verb == "validate" else "test"
    option = f"limit_{prefix}_batches"
    share = options.trainer[option]
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if f"{prefix}_loss" not in figures:
        raise UserError(
            f"nothing was measured: --trainer.{option} {share}",
            "a batch or more",
            f"leave --trainer.{option} out",
        )
    facts = data.manifest.splits["validation"]
    part = "validation split" if share in (None, 1.0) else f"part ({share}) of validation split"
    if held_out := data.manifest.reading["validation_share"]:
        part += f" ({held_out:.0%} held out)"
    print(
        f"checkpoint     {checkpoint}\n"
        f"data           {part} of {data.source}: "
        f"{facts.stories:,} stories, {facts.tokens:,} tokens\n"
        f"{prefix + '_loss':<20}{figures[f'{prefix}_loss']:.4f} nats per token\n"
        f"{prefix + '_perplexity':<20}{figures[f'{prefix}_perplexity']:.3f}\n"
        f"{prefix + '_bits_per_byte':<20}{figures[f'{prefix}_bits_per_byte']:.4f}"
    )
    if path := output_path("--json", options.json):
        path.write_text(json_text(figures), encoding="utf-8")


def _folder(trainer: Trainer) -> Path:
    run = run_of(trainer)
    return run.folder if run else Path(trainer.default_root_dir)
