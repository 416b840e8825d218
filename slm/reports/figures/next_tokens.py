"""The next token's probability at each position of a story."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from slm.data.tokenizer import Tokenizer
from slm.model import GPT
from slm.reports.figures.attention import MOST_TOKENS, token_label
from slm.reports.figures.style import COLORS, new_figure, style


@dataclass(frozen=True)
class Expectation:
    """One token of a text, and what the model expected."""

    token: str
    """The actual token, as a label."""
    probability: float
    """The model's probability of it."""
    hit: bool
    """Whether it was the likeliest."""
    likeliest: list[tuple[str, float]]
    """The likeliest tokens, as labels, with their probabilities."""


@torch.no_grad()
def expectations(
    model: GPT, tokenizer: Tokenizer, text: str, most: int = MOST_TOKENS - 1, among: int = 3
) -> list[Expectation]:
    """The model's expectations at each token of a text's beginning, after an end-of-text.

    Reads at most `most` tokens, and what fits into the context; keeps the likeliest of each.
    """
    room = min(most, model.config.block_size)
    tokens = [tokenizer.end_of_text, *tokenizer.encode(text)][: room + 1]
    if len(tokens) < 2:
        return []
    device = model.token_embedding.weight.device
    logits_TV = model(torch.tensor([tokens[:-1]], device=device))[0]
    probabilities_TV = logits_TV.float().softmax(-1).cpu()
    best = probabilities_TV.topk(min(among, probabilities_TV.size(-1)))
    return [
        Expectation(
            token_label(tokenizer, token),
            float(probabilities[token]),
            ids[0] == token,
            [
                (token_label(tokenizer, likely), share)
                for likely, share in zip(ids, shares, strict=True)
            ],
        )
        for token, probabilities, ids, shares in zip(
            tokens[1:], probabilities_TV, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def draw_next_tokens(found: Sequence[Expectation], about: str = "") -> Figure:
    """A bar for each token, from top to bottom: its probability; beside it the likeliest tokens.

    `about` names the model in the title.
    """
    figure = new_figure(8, 1.0 + 0.2 * len(found))
    with style():
        axes = figure.subplots()
        rows = range(len(found))
        axes.barh(
            rows,
            [each.probability for each in found],
            color=[COLORS[0] if each.hit else COLORS[1] for each in found],
            height=0.75,
        )
        axes.set_yticks(rows, [each.token for each in found], family="DejaVu Sans Mono", fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        for row, each in enumerate(found):
            # Spaces that SVG keeps.
            label = "\u00a0\u00a0\u00a0".join(f"{word} {p:.0%}" for word, p in each.likeliest)
            axes.text(1.02, row, label, va="center", family="DejaVu Sans Mono", fontsize=7.5)
        axes.text(1.02, -1, "the likeliest", va="center", fontsize=8)
        axes.set_xlabel("probability of the actual token")
        title = "Next token (blue: it was the likeliest; orange: it was not)"
        axes.set_title(f"{title}\n{about}" if about else title, loc="left")
    return figure
