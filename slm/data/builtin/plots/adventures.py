"""Plots about finding the way: a child lost at a market, a treasure map."""

from random import Random

from slm.data.builtin import words
from slm.data.builtin.plots.scene import (
    Tale,
    animals,
    child,
    opening,
    pair_opening,
    parent,
    pick,
    tale,
    with_article,
)


def lost_at_market(rng: Random) -> Tale:
    """A child gets lost at a busy market and is found again."""
    a, p = child(rng, ("Lily", "Tom")), parent(rng)
    stall, sight, seller = pick(
        rng,
        ("fish", "a tank with a big red crab", "a man with a white apron"),
        ("bread", "a loaf that looked like a bear", "a baker with a tall hat"),
        ("flower", "a bunch of blue tulips", "a woman with a straw hat"),
        ("fruit", "a mountain of shiny cherries", "a farmer with a kind face"),
        ("toy", "a puppet with a long nose", "an old man with round glasses"),
        ("honey", "a row of golden jars", "a woman with a green apron"),
    )
    coat = with_article(f"{rng.choice(words.COLORS)} coat")
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} loved the smells and the colors of the market.",
                    f"{a} was always looking for new things.",
                ),
                f"went to the market with {a.his} {p.kind}",
                ("day", "day", "Saturday", "sunny morning", "Saturday morning", "busy morning"),
            ),
        ],
        [
            f"At the {stall} stand, {a} saw {sight}.",
            (
                f'"Wow!" said {a}, and {a.he} stopped to look.',
                f"{a} stopped and looked for a long time.",
            ),
            f"When {a} turned around, {p} was gone!",
        ],
        [
            (f"{a} began to cry.", f"{a} was very scared.", ""),
            f"Then {a} remembered something.",
            f'"If you are lost, stay in one place and ask for help," {p} had told {a.him}.',
        ],
        [
            f"{a} went back to the {stall} stand. There was {seller}.",
            f'"Please help me," said {a}. "I cannot find my {p.kind}."',
            f'Everyone at the stand called, "{a} is here! {a} is here!"',
        ],
        [
            (
                f"Soon {a} saw {coat} between the people. It was {p}!",
                f"A moment later, {p} came running through the crowd.",
            ),
            (
                f'"I was so worried!" said {p} and held {a} tight.',
                f'"There you are!" cried {p} and gave {a} a long hug.',
            ),
            (
                f"They thanked everyone and walked home. {a} did not let go of {p}'s hand.",
                f"After that, {a} always held {p}'s hand at the market.",
            ),
        ],
    )


def treasure(rng: Random) -> Tale:
    """Two animals follow a map and find something better than gold."""
    a, b = animals(rng, ("Dot", "Benny"), ("Hazel", "Rusty"))
    where = pick(rng, "in an old bottle", "under a flat stone", "inside a hollow log", "in a nest")
    gold = pick(rng, "gold", "jewels", "silver", "pearls")
    hard, first, solve = pick(
        rng,
        (
            "a wall of thorns",
            "tried to walk through it, but the thorns were too sharp",
            "There is a small hole near the ground. We can crawl through it",
        ),
        (
            "a steep hill",
            "tried to climb it, but the stones were loose",
            "The path around the hill is longer, but it is easy",
        ),
        (
            "a dark cave",
            "took three steps, but it was too dark to see",
            "We can catch the light with this shiny piece of glass",
        ),
        (
            "a swamp full of mud",
            "took one step, but the mud was too deep",
            "We can put branches on the mud and walk on them",
        ),
    )
    find, after = pick(
        rng,
        ("a valley full of wild flowers", "They lay down among the flowers"),
        ("a hidden lake with clear blue water", "They splashed in the cool water"),
        ("a field of sweet strawberries", "They ate until they were full"),
        ("a tree full of ripe plums", "They ate until they were full"),
        ("a little house with two small beds", "They made it their secret club"),
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
                    "They dreamed of a great adventure.",
                    "They were always looking for something new.",
                ),
                f"found a map {where}",
                land="in the same forest",
            ),
            (
                f'"This is a treasure map!" said {a}. "Let us find the {gold}!"',
                f'"There is a big cross on it," said {a}. "We will find {gold}!"',
            ),
        ],
        [
            f"They followed the map for a long time. Then they came to {hard}.",
            f"{a} {first}.",
        ],
        [
            f'"I know a way," said {b}. "{solve}."',
            "They helped each other, and soon they were on the other side.",
        ],
        [
            f"At the end of the path, they stopped and stared. There was no sign of any {gold}.",
            f"But they saw {find}!",
            f"{after}.",
        ],
        [
            (
                f'"The best treasure is a friend who comes along," said {b}.',
                f'"I could not have done it without you," said {a} to {b}.',
            ),
            (
                f"{a} and {b} kept the place a secret and came back every summer.",
                f"And the next day, {a} and {b} brought all their friends there.",
            ),
        ],
    )
