"""The verb `plot`: figures of one run, or of several side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.commands.parsing import os_errors_explained, quick_parser
from slm.commands.runs import check_checkpoint_name, find_checkpoint, find_run, names_apart
from slm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = ("png", "svg")


@os_errors_explained()
def run_plot(words: Sequence[str]) -> int:
    """Draws the figures that a command line asks for.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    options = _make_parser().parse_args(list(words))
    formats = _formats(options.formats)
    folders = _folders(options)
    several = len(folders) > 1
    default = folders[0].parent / "comparison" if several else folders[0] / "figures"
    out = Path(options.out).expanduser() if options.out else default
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", "a folder", f"--out {default}")
    from slm.reports.figures.curves import CURVES, read_run

    runs = [
        read_run(folder, name) for folder, name in zip(folders, names_apart(folders), strict=True)
    ]
    figures: dict[str, Figure] = {}
    for name, draw in CURVES.items():
        if figure := draw(runs):
            figures[name] = figure
    for run in runs:
        if not run.scalars:
            print(f"{run.folder} has no curves", file=sys.stderr)
    if not several:
        figures |= _of_model(folders[0], options)
    if not figures:
        raise UserError(
            f"{', '.join(map(str, folders))}: nothing to draw, neither curves nor a checkpoint",
            "a run that has logged something",
            "train with a logger: it is on unless --trainer.logger false",
        )
    from slm.reports.figures.style import save

    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        paths = [save(figure, out / f"{name}.{kind}") for kind in formats]
        print(", ".join(str(path) for path in paths))
    return 0


def _make_parser() -> Any:
    parser = quick_parser(
        "plot", "slm plot [RUN ...] [--prompt TEXT] [--layer N] [--head N] [--option value ...]"
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        help="Folders of runs, or their names such as version_0; several are compared. Without "
        "one, the newest.",
    )
    for name, kind, default, help_ in (
        ("prompt", str | None, None, "The text whose attention and next tokens are drawn."),
        ("layer", int | None, None, "Layer of the large attention map, from 1; null: the last."),
        ("head", int | None, None, "Head of the large attention map, from 1; null: the first."),
        (
            "ckpt_path",
            str | None,
            None,
            "The checkpoint to draw weights and attention of: a file, or `last` or `best` of the "
            "run, which is also the default.",
        ),
        ("out", str | None, None, "Folder for the figures; null: `figures` in the run's."),
        ("formats", list[str] | str, ",".join(_FORMATS), "png, svg or png,svg."),
        ("trainer.default_root_dir", str | None, None, "Where lightning_logs is."),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=help_)
    return parser


def _formats(given: str | list[str]) -> list[str]:
    """The formats to draw in.

    Raises:
        UserError: There is another, or none.
    """
    words = given.split(",") if isinstance(given, str) else given
    formats = list(dict.fromkeys(word.strip() for word in words))
    if not formats or set(formats) - set(_FORMATS):
        raise UserError(
            f"--formats [{', '.join(formats)}]", "png, svg or both", "--formats png,svg"
        )
    return formats


def _folders(options: Any) -> list[Path]:
    """The folders of the runs to draw; a checkpoint stands for its run.

    Raises:
        UserError: There is no such run, or something is asked for that comparing has no place for.
    """
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
    elif len(named) == 1 and options.ckpt_path is None and str(named[0]).endswith(".ckpt"):
        options.ckpt_path = named[0]
    folders = [find_run(run, options.trainer.default_root_dir) for run in named or [None]]
    return list({folder.resolve(): folder for folder in folders}.values())


def _of_model(run: Path, options: Any) -> dict[str, "Figure"]:
    """Figures of a checkpoint's weights, attention and expectations.

    Raises:
        UserError: There is no such layer or head, or no such checkpoint.
    """
    named = find_checkpoint(run, options.ckpt_path, options.trainer.default_root_dir)
    if named is None:
        print(f"{run} holds no checkpoint: curves only", file=sys.stderr)
        return {}
    from slm.reports.figures.attention import draw_head, draw_heads, maps_of_text, token_label
    from slm.reports.figures.next_tokens import draw_next_tokens, expectations
    from slm.reports.figures.weights import draw_weights
    from slm.reports.pictures import STORY
    from slm.training.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(named)
    shape = checkpoint.gpt
    layer = shape.n_layer if options.layer is None else options.layer
    head = 1 if options.head is None else options.head
    for name, value, most in (
        ("layer", layer, shape.n_layer),
        ("head", head, shape.n_head),
    ):
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
