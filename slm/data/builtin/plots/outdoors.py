"""Plots outdoors: a seed in the garden, a sand castle at the beach."""

from random import Random
from typing import NamedTuple

from slm.data.builtin.plots.scene import (
    GRANDMA,
    GRANDPA,
    Tale,
    child,
    children,
    opening,
    pair_opening,
    parent,
    pick,
    tale,
)


class Plant(NamedTuple):
    """What grows from a seed, and what becomes of it."""

    noun: str
    sprout: str
    result: str
    share: str


PLANTS = (
    Plant(
        "sunflower",
        "The stem grew taller than the fence",
        "a huge yellow flower opened and looked at the sun",
        "The birds came to eat the seeds",
    ),
    Plant(
        "pumpkin",
        "Long green vines crept over the ground",
        "there was a pumpkin as big as a chair",
        "They made a sweet pumpkin pie for all the neighbors",
    ),
    Plant(
        "tomato",
        "The plant grew up along a wooden stick",
        "it was full of round red tomatoes",
        "They made a big salad for the whole family",
    ),
    Plant(
        "bean",
        "The plant climbed up the fence",
        "long green beans hung from every vine",
        "They cooked a big pot of bean soup for everyone",
    ),
    Plant(
        "rose",
        "The plant got thin branches and dark leaves",
        "a beautiful pink rose opened its petals",
        "The bees came to visit it every day",
    ),
    Plant(
        "melon",
        "Its vines ran in every direction",
        "a round melon lay in the sun",
        "They cut it into pieces and shared it with the neighbors",
    ),
)


def seed(rng: Random) -> Tale:
    """A child plants a seed and learns to be patient."""
    a, p, plant = (
        child(rng, ("Mary", "Adam")),
        pick(rng, GRANDMA, GRANDPA, parent(rng)),
        rng.choice(PLANTS),
    )
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} liked to dig in the garden.",
                    f"{a} never liked to wait for anything.",
                    f"{a} liked plants and flowers.",
                ),
                (
                    f"got a {plant.noun} seed from {a.his} {p.kind}",
                    f"got a tiny seed from {a.his} {p.kind}. It was a {plant.noun} seed",
                ),
                ("day", "day", "spring day", "spring morning", "morning in April", "sunny day"),
            ),
            (
                f"{a} made a hole in the ground, put the seed in it and gave it some water.",
                f"{a} planted the seed in the soft brown soil and watered it.",
            ),
        ],
        [
            (
                f"The next morning, {a} ran outside. But nothing was there.",
                f"{a} sat next to the spot all day. But nothing came up.",
            ),
            f'"Where is my {plant.noun}?" asked {a}.',
        ],
        [
            (
                f"{a} waited one week, but there was only brown soil.",
                f"Many days went by, and still {a} saw only dirt.",
            ),
            (
                f'"This seed is no good!" said {a}. {a.he} wanted to dig it up.',
                f'"It will never grow!" said {a}. {a.he} took a shovel to dig it up.',
            ),
            f'"Stop!" said {p}. "It needs water, sun and a little more time."',
            (
                f"So {a} watered it every day and sang to it.",
                f"So {a} left it in the ground and gave it water every morning.",
                "",
            ),
        ],
        [
            (
                f'Then, one morning, {a} saw a tiny green leaf. "{p}, come quickly!" {a} called.',
                f'At last, a small green sprout came up. "It is alive!" {a} shouted.',
            ),
            (f"After that, it grew and grew. {plant.sprout}.", "After that, it grew and grew."),
            f"By the end of summer, {plant.result}.",
        ],
        [
            (f"{plant.share}.", ""),
            (
                f"{a} was very proud. Now {a.he} knew that good things take time.",
                f"{a} kept one seed in a little box for the next spring.",
            ),
        ],
    )


def sand_castle(rng: Random) -> Tale:
    """A wave takes a sand castle, and two friends build a better one."""
    a, b = children(rng, ("Jane", "Luke"), ("Tina", "Theo"))
    p = parent(rng)
    tower = pick(rng, "a shell", "a feather", "a red flag", "a green bottle", "a white stone")
    king = pick(rng, "crab", "starfish", "snail")
    return tale(
        rng,
        (a, b, p),
        [
            pair_opening(
                rng,
                a,
                b,
                (
                    "They loved the water and the sand.",
                    "They always had big plans.",
                ),
                f"went to the beach with {a}'s {p.kind}",
                ("day", "summer day", "hot day", "sunny morning", "day in July"),
            ),
            (
                f'"Let us build a castle for a king!" said {a}.',
                f'"Let us build the biggest castle on the beach!" said {a}.',
            ),
        ],
        [
            f"{a} filled a bucket with wet sand, and {b} made the walls.",
            "But then a big wave came. Whoosh!",
            (
                "When the wave was gone, the castle was gone too.",
                "The wave washed the whole castle away.",
            ),
        ],
        [
            (
                f'"All our work is lost!" cried {a}. "I do not want to build any more."',
                f'"That mean wave!" cried {a} and threw the bucket down.',
            ),
            f'{p} came to help. "Look at the sand. Where is it dry?" asked {p}.',
            f'{b} looked around. "The water does not come so far! We must move back," said {b}.',
        ],
        [
            (
                "So they carried their things away from the water and began again.",
                "So they took the bucket and went to a safe place near the dunes.",
            ),
            f"{a} dug a deep ditch, and {b} built a strong wall around the castle.",
        ],
        [
            (
                f'"It is even better than the first one," said {b}.',
                f'"We did not give up," said {b} proudly.',
            ),
            (
                f"A little {king} moved in and became the king of the castle.",
                f"At the top of the castle, they put {tower}.",
                f"{a}, {b} and {p} ate ice cream and watched the sun go down.",
                f"{p} took a picture of {a} and {b} with their castle.",
                "",
            ),
            (
                "They learned that you can always start again.",
                "It was a day that they never forgot.",
            ),
        ],
    )
