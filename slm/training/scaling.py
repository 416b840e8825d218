"""How well a model of some size will predict stories after some tokens: a fit of our own runs."""

import math


def expected_bits_per_byte(parameters: int, tokens: float) -> float:
    """Bits per byte on held-out TinyStories, for the modern configs with 4,096 tokens of their own.

        0.45 + 8447 / N^0.8 + 57.8 / D^0.35     (the form of Hoffmann et al. 2022, arXiv 2203.15556)

    The constants are fitted to eight runs of 0.9 to 3.3 M parameters on 0.6 to 7 M tokens, which
    they meet within 0.013 (benchmarks/2026-11-24-recipe.md). Far outside these it is a guess.
    N counts all parameters, D the tokens trained on.
    """
    return 0.45 + 8447.0 * math.pow(parameters, -0.8) + 57.8 * math.pow(tokens, -0.35)
