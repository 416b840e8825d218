"""Plots at home: a cake that goes wrong, a broken thing and the truth."""

from random import Random
from typing import NamedTuple

from slm.data.builtin import words
from slm.data.builtin.plots.scene import (
    GRANDMA,
    GRANDPA,
    Tale,
    child,
    opening,
    parent,
    pick,
    tale,
    with_article,
)


class Treat(NamedTuple):
    """Something to bake, its shape and what goes on it."""

    noun: str
    topping: str


TREATS = (
    Treat("chocolate cake", "pink cream"),
    Treat("apple pie", "a little cream"),
    Treat("carrot cake", "white frosting"),
    Treat("lemon cake", "yellow frosting"),
    Treat("strawberry cake", "fresh strawberries"),
    Treat("banana bread", "a few nuts"),
    Treat("cherry pie", "a big spoon of cream"),
)


def baking(rng: Random) -> Tale:
    """A child bakes with someone, something goes wrong, and it is saved."""
    a, p, treat = (
        child(rng, ("Rosie", "Peter")),
        pick(rng, GRANDMA, GRANDPA, parent(rng)),
        rng.choice(TREATS),
    )
    noun = treat.noun
    trouble, cry, answer, fix = pick(
        rng,
        (
            f"But {a} took the salt and not the sugar! They tasted the dough. It was awful.",
            "I made a big mistake",
            "Even great cooks make mistakes. We will just start again",
            f"They washed the bowl and made new dough. This time, {a} tasted the sugar first.",
        ),
        (
            "Then the bag of flour fell down. Puff! There was flour everywhere.",
            "I made a terrible mess",
            "You look like a little snowman! We can clean it up",
            f"{a} swept the floor, and {p} found another bag of flour on the shelf.",
        ),
        (
            "Then the eggs rolled off the table. Splat! They broke on the floor.",
            "Now we have no eggs",
            "We can ask the neighbor for help",
            f"{a} ran next door, and the friendly neighbor gave {a.him} three brown eggs.",
        ),
        (
            f"They put the {noun} into the oven, but they forgot it. Soon the top was black.",
            "It is burned",
            "Only the top is burned. We can save the rest",
            f"{p} cut off the black part very carefully, and {a} helped.",
        ),
        (
            "When no one was looking, the dog ate the butter from the table!",
            "Bad dog! What can we do now",
            "We can use oil. That works too",
            f"{a} put the dog in the yard, and {p} took a bottle of oil from the shelf.",
        ),
        (
            f"{a} opened the jar, but there was no sugar left, not even a spoon of it.",
            "It will not be sweet",
            "We can use honey. Bees make the best sugar",
            f"{p} took the honey from the shelf, and {a} stirred it into the dough.",
        ),
    )
    question = "?" if cry.endswith("now") and "What" in cry else "!"
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} loved to help in the kitchen.",
                    f"{a}'s favorite thing to eat was {noun}.",
                    f"{a} liked everything that was sweet.",
                ),
                (
                    f"wanted to bake {bread(noun)} with {a.his} {p.kind}",
                    f"asked {a.his} {p.kind} to help {a.him} bake {bread(noun)}",
                ),
                ("day", "day", "Sunday", "rainy day", "Sunday morning", "winter afternoon"),
            ),
        ],
        [
            f"{p} mixed the flour and the eggs, and {a} stirred with a big spoon."
            if "burned" in cry or "sugar" in trouble or "butter" in trouble
            else f"{p} took out a big bowl, and {a} got the flour, the eggs and the butter.",
            trouble,
            f'"Oh no! {cry}{question}" {a} cried.',
        ],
        [
            (
                f'But {p} only laughed. "{answer}," said {p}.',
                f'{p} put an arm around {a}. "{answer}," said {p}.',
            ),
            fix,
        ],
        [
            f"Then the {noun} went into the oven, and soon the whole house smelled wonderful."
            if "burned" not in cry
            else f"Now the {noun} looked beautiful, and no one could see the burned part.",
            f"At last, they put {treat.topping} on top.",
        ],
        [
            (
                f"They cut the {noun} and took a big bite. It was delicious!",
                f"The whole family came to taste the {noun}. Everyone wanted more!",
            ),
            (
                f"{a} learned that a mistake is not the end.",
                f"That night, {a} went to bed with a full tummy and a happy heart.",
            ),
        ],
    )


def bread(noun: str) -> str:
    """The treat with its article, if it takes one."""
    return noun if noun.endswith("bread") else with_article(noun)


class Accident(NamedTuple):
    """How something broke in the house."""

    play: str
    crash: str


ACCIDENTS = (
    Accident("threw a ball in the living room", "The ball hit the {thing}."),
    Accident("danced around in the living room", "{a}'s arm hit the {thing}."),
    Accident("ran through the house like a race car", "{a} ran into the table with the {thing}."),
    Accident("jumped on the sofa like a kangaroo", "A pillow flew off and hit the {thing}."),
    Accident("rode a toy horse around the table", "The toy horse bumped into the {thing}."),
    Accident("played with a toy airplane indoors", "The airplane crashed into the {thing}."),
)


def broken_vase(rng: Random) -> Tale:
    """A child breaks something, hides it, and then tells the truth."""
    a, p, accident = child(rng, ("Ruby", "Billy")), parent(rng), rng.choice(ACCIDENTS)
    noun = pick(rng, "vase", "lamp", "bowl", "plate", "teapot", "jar", "mirror")
    thing = f"{rng.choice(words.COLORS)} {noun}" if noun != "mirror" else "old mirror"
    hiding = pick(rng, "under the rug", "behind the sofa", "in a box", "under the bed")
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} had a lot of energy and could not sit still.",
                    f"{a} liked wild games more than quiet ones.",
                    f'{p} often said, "Please do not play wild games in the house."',
                ),
                accident.play,
                ("day", "day", "rainy day", "gray afternoon", "rainy afternoon", "Saturday"),
            ),
            accident.crash.format(a=a, thing=thing),
            (
                f"Crash! The {noun} fell down and broke.",
                f"Crash! The {noun} broke into many pieces.",
            ),
        ],
        [
            (
                f"{a} was afraid, so {a.he} hid the pieces {hiding}.",
                f"{a} did not want to get in trouble, so {a.he} put the pieces {hiding}.",
            ),
            f'Soon {p} came in. "Where is my {noun}?" {p} asked.',
            (
                f'"I do not know," said {a} and looked at the floor.',
                f'"Maybe the wind took it," said {a} in a small voice.',
            ),
        ],
        [
            (
                f"At dinner, {a} could not eat. {a.his} tummy hurt because of the lie.",
                f"That evening, {a} could not sleep. The lie felt like a heavy stone.",
            ),
            (
                f'"I must tell the truth," {a} thought, "even if it is hard."',
                f'"A lie only makes it worse," {a} thought. "I must be honest."',
                "",
            ),
        ],
        [
            f'{a} went to {p}. "I broke the {noun} and hid it. I am very sorry," {a.he} said.',
            (
                f'"I am sad about the {noun}, but I am glad that you told me the truth," said {p}.',
                f'"Thank you for being honest. You matter more than any {noun}," said {p}.',
            ),
        ],
        [
            (
                f"The next day, they put the {noun} back together with glue."
                if noun != "mirror"
                else "The next day, they picked up all the pieces and bought a new mirror.",
                f"The next day, {a} used {a.his} own coins to help buy a new {noun}.",
                "",
            ),
            (
                f"From then on, {a} always told the truth.",
                f"{a} felt light and happy again, because the lie was gone.",
            ),
        ],
    )
