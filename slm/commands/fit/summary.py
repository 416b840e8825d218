"""First and last words of a run."""

import json
from pathlib import Path

from lightning.pytorch import Trainer

from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.generation.storyteller import PROMPT, example_story
from slm.reports.figures.curves import draw_loss, read_run
from slm.reports.figures.style import save
from slm.reports.page import shortened
from slm.reports.run_report import write_report
from slm.training.callbacks.curves import TrainingCurves, tokens_per_step
from slm.training.callbacks.record import run_folder
from slm.training.callbacks.standard import describe_devices
from slm.training.callbacks.time_budget import format_duration, time_budget
from slm.training.checkpoint import open_checkpoint
from slm.training.module import StoryModel


def describe_run(trainer: Trainer, model: StoryModel, data: StoryData) -> str:
    """What is going to be trained, on what, how, and where it will lie."""
    tokens = tokens_per_step(trainer, data)
    budget = time_budget(trainer)
    steps = (
        f"{format_duration(budget.seconds)}, about {budget.steps:,} steps"
        if budget
        else f"{trainer.max_steps:,} steps"
    )
    compiled = ", compiled" if model.compile_model else ""
    return (
        f"Model      {model.model.parameter_counts()}\n"
        f"Data       {data.source}, in {data.folder}\n"
        f"Training   {steps} of {tokens:,} tokens, {trainer.precision}, "
        f"{describe_devices(trainer)}{compiled}\n"
        f"Run        {shortened(_folder(trainer))}"
    )


def print_summary(trainer: Trainer, report: bool) -> None:
    """Draws the loss, says where everything lies, and tells a story by the best checkpoint.

    Args:
        trainer: The Trainer that has trained.
        report: Whether to write the run's report, too.
    """
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
        print(f"Curves     tensorboard --logdir {shortened(run.parent)}")
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if trainer.global_step < trainer.max_steps:
        print(
            f"Stopped    at step {trainer.global_step:,} of {trainer.max_steps:,}. "
            "To go on: slm fit --ckpt_path last"
        )
    if path:
        best = shortened(Path(path))
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        loss = "" if score is None else f" (val_loss {float(score):.4f})"
        print(f"Best       {best}{loss}")
        print(f'Stories    slm predict --ckpt_path {best} --prompt "{PROMPT}"')
    else:
        print("Best       none: there was no validation, or no checkpoint was to be kept")
    if curves and report:
        print(f"Report     {shortened(write_report(run, curves=curves))}")
    if path:
        checkpoint = open_checkpoint(Path(path))
        story = example_story(checkpoint.make_model(), checkpoint.make_tokenizer())
        print(f"\nA story by the best checkpoint:\n\n{story}")


def print_figures(
    trainer: Trainer,
    data: StoryData,
    prefix: str,
    checkpoint: str | None,
    share: int | float | None,
    file: Path | None,
) -> None:
    """Prints what was measured on the validation split.

    Args:
        trainer: The Trainer that measured.
        data: The data it measured on.
        prefix: "val" or "test", as the figures' names begin.
        checkpoint: Path of what was measured.
        share: How many batches, or which share of them; None or 1.0 means all.
        file: Where to write the figures as JSON, too, if anywhere.

    Raises:
        UserError: Nothing was measured.
    """
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if f"{prefix}_loss" not in figures:
        option = f"--trainer.limit_{prefix}_batches"
        raise UserError(
            f"nothing was measured: {option} {share}", "a batch or more", f"leave {option} out"
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
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _folder(trainer: Trainer) -> Path:
    """The run's folder."""
    return run_folder(trainer) or Path(trainer.default_root_dir)
