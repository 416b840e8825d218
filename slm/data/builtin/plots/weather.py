"""Plots about the weather: a picnic in the rain, a kite in the wind, a snowman."""

from random import Random

from slm.data.builtin import words
from slm.data.builtin.plots.scene import (
    Tale,
    children,
    opening,
    pair_opening,
    pick,
    tale,
    with_article,
)


def picnic(rng: Random) -> Tale:
    """Rain spoils a picnic, and the friends save it."""
    a, b = children(rng, ("Kate", "Henry"), ("Maya", "Joe"))
    food, other = rng.sample(words.FOODS, 2)
    place = pick(rng, "by the lake", "on the hill", "in the meadow", "under the big oak tree")
    idea, run, there, fun = pick(
        rng,
        (
            "We can have our picnic in the barn",
            "ran to the old barn",
            "The barn was dry and smelled of hay",
            "A brown cow looked at them and said moo",
        ),
        (
            "We can have our picnic at my house, on the floor",
            f"ran to {b}'s house",
            "The room was warm, and they moved the chairs to the side",
            "They pretended that the rug was green grass",
        ),
        (
            "We can build a tent in my room",
            f"ran to {b}'s house",
            "They hung a big sheet over two chairs and crawled inside",
            "It was like a secret cave",
        ),
        (
            "We can have our picnic under the bridge",
            "ran to the stone bridge",
            "Under the bridge, the ground was dry",
            "They watched the drops dance on the water",
        ),
        (
            "We can have our picnic on the porch",
            f"ran to {b}'s house",
            "The porch had a roof and a long wooden bench",
            "They listened to the music of the rain",
        ),
    )
    return tale(
        rng,
        (a, b),
        [
            pair_opening(
                rng,
                a,
                b,
                (
                    "They loved to be outside.",
                    "They had waited all week for a picnic.",
                ),
                f"went on a picnic {place}",
            ),
            (
                f"{a} had a basket with {food}, and {b} had {other}.",
                f"{a} carried {food}, and {b} carried {other} in a basket.",
            ),
        ],
        [
            (
                "But then a dark cloud came, and big drops of rain began to fall.",
                "But then the sky turned gray, and it began to rain.",
            ),
            (f'"Our picnic is spoiled!" cried {a}.', f'"Oh no! Not today!" cried {a}.'),
        ],
        [
            (
                "They held a blanket over their heads, but soon it was wet too.",
                "They sat under a small tree, but the rain came through the leaves.",
            ),
            f'"I know what to do!" said {b}. "{idea}."',
        ],
        [
            f"They picked up the basket and {run}.",
            f"{there}.",
            f"{a} and {b} ate {food} and {other}. {fun}.",
        ],
        [
            (
                "When the rain stopped, there was a rainbow in the sky.",
                "After a while, the sun came out, and the birds sang again.",
                "",
            ),
            (
                f'"This was the best picnic of all," said {a}, and {b} agreed.',
                f'"I like rainy picnics," said {a}. "Me too," said {b}.',
            ),
            (
                "They learned that a bad day can turn into a good one.",
                f"Then {a} and {b} jumped in all the puddles on the way home.",
            ),
        ],
    )


def kite(rng: Random) -> Tale:
    """A kite gets stuck in a tree, and a friend has the right idea."""
    a, b = children(rng, ("Bella", "Nick"), ("Clara", "Charlie"))
    color = rng.choice(words.COLORS)
    look = pick(rng, "a long tail", "a smiling face", "white stripes", "big eyes", "silver stars")
    place = pick(rng, "in the park", "on the hill", "in the meadow", "near the school")
    idea, deed = pick(
        rng,
        (
            "My dad has a long ladder",
            f"{b}'s dad came with the ladder, climbed up and got the kite",
        ),
        (
            "We can use the long rake from our garden",
            f"{b} ran home and came back with the rake. Very gently, {b} pushed the kite free",
        ),
        (
            "If we work together, we can reach it",
            f"{a} stood on a big rock and held the branch down, and {b} pulled the kite free",
        ),
        (
            "We can wait for a stronger wind",
            f"{a} and {b} waited. Then a strong wind shook the branch, and the kite came down",
        ),
        (
            "The gardener is tall and has a long pole",
            "The friendly gardener came with the pole and lifted the kite out of the branches",
        ),
    )
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"{a} had {with_article(color)} kite with {look}.",
                    f"{a} had made {with_article(color)} kite with {look}.",
                ),
                f"went out to fly {a.his} kite {place}",
                ("day", "windy day", "windy morning", "fine spring day", "bright autumn day"),
            )
        ],
        [
            (
                "The wind was strong, and the kite flew higher and higher.",
                "The kite danced in the sky like a bird.",
            ),
            (
                f"But the string slipped out of {a}'s hand, and the kite flew into a tall tree.",
                "But then the wind turned, and the kite got stuck in a tall tree.",
            ),
            (f'"Oh no! My kite!" cried {a}.', f'"Come down, kite!" cried {a}.', ""),
        ],
        [
            (
                f"{a} jumped as high as {a.he} could, but the branch was too high.",
                f"{a} pulled on the string, but the kite did not move.",
            ),
            f'{a} sat down in the grass. "I will never get it back," {a.he} said.',
        ],
        [
            f"A {b.kind} named {b} came along and saw the kite in the tree.",
            (
                f'"I can help you," said {b}. "{idea}."',
                f'"Do not be sad," said {b}. "{idea}."',
            ),
            f"{deed}.",
        ],
        [
            (
                f'"Would you like to fly it with me?" asked {a}. "Oh yes!" said {b}.',
                f'"Now it is your turn to hold the string," said {a}. {b} was delighted.',
            ),
            (
                "When the sun went down, they were good friends.",
                f"{a} went home with a kite and a new friend.",
                f"After that, {a} and {b} met on every windy day.",
            ),
        ],
    )


def snowman(rng: Random) -> Tale:
    """Two friends build a snowman, and something goes wrong."""
    a, b = children(rng, ("Ivy", "Toby"), ("Alice", "David"))
    color = rng.choice(words.COLORS)
    trouble, first, idea, deed = pick(
        rng,
        (
            "But the head was too heavy, and they could not lift it",
            "They pushed and pulled, but the head fell down again",
            "We can make a hill of snow and roll the head up",
            "They made a hill of snow, and step by step they rolled the head to the top",
        ),
        (
            "But they had no carrot for the nose",
            "They tried a stone, but it fell off. They tried a leaf, but it looked silly",
            "A pine cone is long and brown. It can be the nose",
            f"{b} ran to the pine tree and came back with a pine cone. It was perfect",
        ),
        (
            "But a strong wind blew the snowman's hat away",
            "They ran after the hat, but it flew over the fence and was gone",
            "We can use an old bucket as a hat",
            f"{b} ran to the shed and came back with a blue bucket. It fit very well",
        ),
        (
            "Then a big dog jumped on the snowman and knocked it down",
            "They tried to put the pieces back, but the snow just fell apart",
            "We can build a new one, and we can build a snow dog too",
            "They made new snowballs, and next to the snowman they made a snow dog",
        ),
        (
            "But a bird came and took the carrot nose away",
            "They called after the bird, but it sat high in a tree and ate the carrot",
            "The bird is hungry. We can feed it and find a new nose",
            f"{b} put some seeds in the snow for the bird, and {a} found a long stick for the nose",
        ),
    )
    return tale(
        rng,
        (a, b),
        [
            pair_opening(
                rng,
                a,
                b,
                (
                    "They had waited for the snow for a long time.",
                    "They loved the winter more than the summer.",
                ),
                (
                    "woke up and saw that everything was white",
                    "looked outside and saw the first snow of the year",
                ),
                ("winter morning", "cold morning", "day in December", "morning in January"),
            )
        ],
        [
            f'"Let us build a big snowman!" said {a}.',
            (
                "They rolled one big ball, and then another one. Soon the snowman was almost done.",
                "They rolled big balls of soft snow. Soon the snowman was almost done.",
            ),
            f"{trouble}.",
        ],
        [
            f"{first}.",
            f'"Wait, I have an idea," said {b}. "{idea}."',
        ],
        [
            f"{deed}.",
            (f"Then {a} gave the snowman {with_article(color)} scarf.", ""),
            (f'"Now it is done!" said {b}.', f'"What a fine snowman!" said {b}.', ""),
        ],
        [
            (
                f"After that, {a} and {b} went inside and drank hot chocolate.",
                f"After that, {a} and {b} sat by the fire and drank warm milk with honey.",
            ),
            (
                "From the window, they waved to the snowman. It seemed to smile back.",
                "They were tired and very happy.",
                "It was the best winter day that they could remember.",
            ),
        ],
    )
