"""HTML pages without external files: sections, tables, embedded figures."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from slm.printable import printable
from slm.reports.figures.style import as_bytes


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page, from a title in plain text and parts in HTML."""
    # The body last: it may contain the marks of the template.
    return _TEMPLATE.replace("{title}", escape(title)).replace("{body}", "\n".join(parts))


def number(value: float | None, form: str) -> str:
    """A formatted number; a dash for None."""
    return "–" if value is None else format(value, form)


def section(title: str, body: str) -> str:
    """A part of a page; nothing if its body is empty."""
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and their meanings."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<dl>{cells}</dl>" if cells else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    return f'<div class="grid"><table><tr>{head}</tr>{body}</table></div>'


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with a label."""
    shown = "".join(f"<div><b>{escape(v)}</b><span>{escape(w)}</span></div>" for v, w in figures)
    return f'<div class="tiles">{shown}</div>'


def folded(summary: str, text: str, opened: bool = False, tag: str = "p") -> str:
    """A plain text, in the tag p or pre, that is shown when its summary is clicked."""
    return (
        f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>"
        f"<{tag}>{escape(printable(text))}</{tag}></details>"
    )


def drawn(name: str, figure: Figure, caption: str, kind: str = "svg") -> str:
    """An embedded figure: svg, or png if there are too many lines for an svg."""
    encoded = base64.b64encode(as_bytes(figure, kind)).decode()
    form = "svg+xml" if kind == "svg" else kind
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/{form};base64,{encoded}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 960px; padding: 1rem; }
h1 { margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { border-bottom: 2px solid #0072b2; margin-top: 2.5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.tiles div { background: #f1f5f9; border-radius: .5rem; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.3rem; }
.tiles span { font-size: .8rem; color: #555; }
dl { display: grid; grid-template-columns: 8rem 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { font-size: .85rem; color: #555; }
details { border-left: 3px solid #d0d7de; padding: .1rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
details p { white-space: pre-wrap; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .8rem; }
code { background: #f6f8fa; overflow-wrap: anywhere; }
.grid { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e2e8f0;
  vertical-align: top; }
td:not(:last-child) { white-space: nowrap; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
  img { max-width: none; width: 36rem; }  /* to be read by pushing it sideways */
  figure::before { content: "wider than the page: push it sideways"; position: sticky; left: 0;
    font-size: .75rem; color: #777; }
  figcaption { position: sticky; left: 0; }
}
@media print { details { break-inside: avoid; } figure { break-inside: avoid; } }
</style>
</head>
<body>
{body}
</body>
</html>
"""
