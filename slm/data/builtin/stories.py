"""The stream of stories: distinct, and the same for the same seed."""

from collections.abc import Iterator
from random import Random

from slm.data.builtin.plots import PLOTS
from slm.data.builtin.plots.scene import Tale


def tales(count: int, seed: int = 1337) -> Iterator[tuple[str, Tale]]:
    """Yields `count` distinct tales, each with the name of its plot."""
    rng = Random(seed)
    told: set[str] = set()
    while len(told) < count:
        plot = rng.choice(PLOTS)
        tale = plot(rng)
        if tale.text not in told:
            told.add(tale.text)
            yield plot.__name__, tale


def stories(count: int, seed: int = 1337) -> Iterator[str]:
    """Yields `count` distinct stories; fewer stories are a prefix of more.

    Args:
        count: How many stories to tell.
        seed: Stories of different seeds are told in a different order.

    Yields:
        A story of a few paragraphs, one paragraph per line.
    """
    for _, tale in tales(count, seed):
        yield tale.text
