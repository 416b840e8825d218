"""The verb `plot`: figures of one run, or of several side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.commands.complaints import os_errors_explained, quick_parser
from slm.commands.runs import find_checkpoint, find_run, names_apart
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
    formats = list(dict.fromkeys(options.formats))
    if not formats or set(formats) - set(_FORMATS):
        raise UserError(
            f"--formats [{', '.join(formats)}]", "png, svg or both", "--formats '[png, svg]'"
        )
    several = len(options.runs) > 1
    _check_for_one_run(options, several)
    file = None if options.ckpt_path in (None, "last", "best") else options.ckpt_path
    if file is None and len(options.runs) == 1 and options.runs[0].endswith(".ckpt"):
        options.ckpt_path = options.runs[0]
    root = options.trainer.default_root_dir
    folders = [find_run(named, root) for named in options.runs or [file]]
    default = folders[0].parent / "comparison" if several else folders[0] / "figures"
    out = Path(options.out).expanduser() if options.out else default
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
        ("formats", list[str], list(_FORMATS), "png, svg or both."),
        ("trainer.default_root_dir", str | None, None, "Where lightning_logs is."),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=help_)
    return parser


def _check_for_one_run(options: Any, several: bool) -> None:
    """Checks that nothing is asked for that comparing has no place for.

    Raises:
        UserError: Something is.
    """
    for name in ("prompt", "layer", "head", "ckpt_path"):
        if several and getattr(options, name) is not None:
            raise UserError(
                f"--{name} with {len(options.runs)} runs, of which only curves are drawn",
                "one run",
                f"leave --{name} out, or name one run",
            )


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
    text = options.prompt or STORY
    tokens, maps_LHTT = maps_of_text(model, tokenizer, text)
    labels = [token_label(tokenizer, token) for token in tokens]
    title = f"Layer {layer}, head {head} ({checkpoint.path.stem}, step {checkpoint.step:,})"
    figures = {
        "weights": draw_weights(model),
        "attention-heads": draw_heads(maps_LHTT),
        "attention": draw_head(maps_LHTT[layer - 1, head - 1], labels, title),
    }
    if found := expectations(model, tokenizer, text):
        figures["next-tokens"] = draw_next_tokens(found)
    return figures
