"""How well a model of some size will predict stories after some tokens: a fit of our own runs."""

import math


def expected_bits_per_byte(parameters: int, tokens: float) -> float:
    """Bits per byte on held-out TinyStories, for the modern configs with 4,096 tokens of their own.

        E + A / N^a + B / D^b                          (Hoffmann et al. 2022, arXiv 2203.15556)

    Args:
        parameters: N, all of them.
        tokens: D, tokens trained on.
    """
    return 0.35 + 30.0 * math.pow(parameters, -0.35) + 60.0 * math.pow(tokens, -0.4)
