"""The verb `plot`: figures of one run, or of several side by side."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slm.commands.lookup import check_checkpoint_name, distinct_names, find_checkpoint, find_run
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import RootOptions, parse, positional
from slm.errors import UserError
from slm.files import quoted
from slm.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PlotOptions:
    """The options of `plot`."""

    runs: list[str] = positional("*")
    """Folders of runs, or their names such as version_0; several are compared. Without one, the
    newest."""
    prompt: str | None = None
    """The text whose attention and next tokens are drawn."""
    layer: int | None = None
    """Layer of the large attention map, from 1; null: the last."""
    head: int | None = None
    """Head of the large attention map, from 1; null: the first."""
    ckpt_path: str | None = None
    """The checkpoint to draw weights and attention of: a file, or `last` or `best` of the run,
    which is also the default."""
    out: str | None = None
    """Folder for the figures; null: `figures` in the run's folder."""
    formats: list[str] | str = "png,svg"
    """png, svg or png,svg."""
    trainer: RootOptions = RootOptions()


def plot(arguments: Arguments) -> int:
    """Draws the figures of runs."""
    usage = "slm plot [RUN ...] [--prompt TEXT] [--layer N] [--head N] [--option value ...]"
    options = parse("plot", PlotOptions, arguments, usage)
    names = options.formats.split(",") if isinstance(options.formats, str) else options.formats
    formats = list(dict.fromkeys(name.strip() for name in names))
    if not formats or set(formats) - {"png", "svg"}:
        raise UserError(
            f"--formats [{', '.join(formats)}]", "png, svg or both", "--formats png,svg"
        )
    runs = _find_runs(options)
    several = len(runs) > 1
    first = runs[0].folder
    default = first.parent / "comparison" if several else first / "figures"
    out = Path(options.out).expanduser() if options.out else default
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", "a folder", f"--out {quoted(default)}")
    from slm.reports.figures.curves import CURVES, read_run  # matplotlib takes a second to load

    curves = [
        read_run(run.folder, name) for run, name in zip(runs, distinct_names(runs), strict=True)
    ]
    figures = {name: figure for name, draw in CURVES.items() if (figure := draw(curves))}
    for each in curves:
        if not each.scalars:
            print(f"{each.folder} has no curves", file=sys.stderr)
    if not several:
        figures |= _draw_model(runs[0], options)
    if not figures:
        raise UserError(
            f"{', '.join(str(run.folder) for run in runs)}: nothing to draw, neither curves nor a "
            "checkpoint",
            "a run that has logged something",
            "train with a logger: it is on unless --trainer.logger false",
        )
    from slm.reports.figures.style import save

    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        paths = [save(figure, out / f"{name}.{kind}") for kind in formats]
        print(", ".join(str(path) for path in paths))
    return 0


def _find_runs(options: PlotOptions) -> list[Run]:
    """The runs to draw, each once; a checkpoint stands for its run."""
    named: list[str | None] = list(options.runs)
    for name in ("prompt", "layer", "head", "ckpt_path"):
        if len(named) > 1 and getattr(options, name) is not None:
            raise UserError(
                f"--{name} with {len(named)} runs, of which only curves are drawn",
                "one run",
                f"leave --{name} out, or name one run",
            )
    if not named and options.ckpt_path not in (None, "last", "best"):
        check_checkpoint_name(options.ckpt_path)
        named = [options.ckpt_path]
    runs = [find_run(run, options.trainer.logs) for run in named or [None]]
    return list({run.folder.resolve(): run for run in runs}.values())


def _draw_model(run: Run, options: PlotOptions) -> dict[str, "Figure"]:
    """Figures of a checkpoint's weights, attention and next tokens."""
    named = options.ckpt_path
    if named is None and options.runs and options.runs[0].endswith(".ckpt"):
        named = options.runs[0]
    path = find_checkpoint(run, named, options.trainer.logs)
    if path is None:
        print(f"{run.folder} contains no checkpoint: curves only", file=sys.stderr)
        return {}
    from slm.reports.figures.attention import draw_head, draw_heads, maps_of_text, token_label
    from slm.reports.figures.next_tokens import draw_next_tokens, expectations
    from slm.reports.figures.weights import draw_weights
    from slm.reports.pictures import STORY
    from slm.training.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    shape = checkpoint.gpt
    layer = shape.n_layer if options.layer is None else options.layer
    head = 1 if options.head is None else options.head
    for name, value, most in (("layer", layer, shape.n_layer), ("head", head, shape.n_head)):
        if not 1 <= value <= most:
            raise UserError(f"--{name} {value}", f"from 1 to {most}", f"--{name} 1")
    model, tokenizer = checkpoint.make_model(), checkpoint.make_tokenizer()
    text = STORY if options.prompt is None else options.prompt
    if not text.strip():
        raise UserError("--prompt is empty", "a text to look at", '--prompt "Once upon a time"')
    tokens, maps_LHTT = maps_of_text(model, tokenizer, text)
    labels = [token_label(tokenizer, token) for token in tokens]
    if len(tokens) < 1 + len(tokenizer.encode(text)):
        print(f"--prompt: its first {len(tokens) - 1} tokens are drawn", file=sys.stderr)
    title = f"Layer {layer}, head {head} ({checkpoint.label})"
    figures = {
        "weights": draw_weights(model, checkpoint.label),
        "attention-heads": draw_heads(maps_LHTT, f"All heads ({checkpoint.label})"),
        "attention": draw_head(maps_LHTT[layer - 1, head - 1], labels, title),
    }
    if found := expectations(model, tokenizer, text):
        figures["next-tokens"] = draw_next_tokens(found, checkpoint.label)
    return figures
