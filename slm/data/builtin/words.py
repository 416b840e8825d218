"""The lexicon of the stories: animals, places, toys, foods and colors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pronouns:
    """The pronouns of one gender, in lower case."""

    he: str
    him: str
    his: str
    self: str


SHE = Pronouns("she", "her", "her", "herself")
HE = Pronouns("he", "him", "his", "himself")


@dataclass(frozen=True)
class Creature:
    """A kind of forest animal: where it lives, what it eats and how it moves."""

    noun: str
    home: str
    food: str
    went: str


@dataclass(frozen=True)
class Place:
    """An outdoor place with spots where a small thing can hide."""

    name: str
    spots: tuple[str, ...]


CHILD_HOMES = (
    "in a small house near the park",
    "in a yellow house on a quiet street",
    "in a little village by the river",
    "in a white house on a green hill",
    "in a cozy house at the edge of town",
    "in a pretty house with a big garden",
)

RABBIT = Creature("rabbit", "in a cozy burrow under an oak tree", "carrots", "hopped")
FOX = Creature("fox", "in a warm den behind the hill", "berries", "ran")
MOUSE = Creature("mouse", "in a tiny hole under a log", "seeds", "scurried")
SQUIRREL = Creature("squirrel", "in a hollow tree", "nuts", "scampered")
HEDGEHOG = Creature("hedgehog", "under a pile of dry leaves", "apples", "walked")
BEAR = Creature("bear", "in a big cave", "honey", "walked")
DUCK = Creature("duck", "near the pond", "corn", "waddled")
FROG = Creature("frog", "beside the pond", "berries", "jumped")
TURTLE = Creature("turtle", "by the river", "leaves", "crawled")
DEER = Creature("deer", "at the edge of the meadow", "clover", "trotted")
MOLE = Creature("mole", "in a tunnel under the meadow", "roots", "walked")
BADGER = Creature("badger", "in a snug den under the roots of a tree", "mushrooms", "walked")
OTTER = Creature("otter", "on the bank of the river", "fish", "ran")
CREATURES = (
    RABBIT, FOX, MOUSE, SQUIRREL, HEDGEHOG, BEAR, DUCK, FROG, TURTLE, DEER, MOLE, BADGER, OTTER,
)  # fmt: skip

TRAITS = ("little", "little", "kind", "cheerful", "curious", "happy", "clever", "sweet", "young")
DAYS = ("day", "day", "day", "sunny day", "sunny morning", "bright morning", "warm afternoon")

COLORS = ("red", "blue", "yellow", "green", "orange", "pink", "purple", "white", "brown")
TOYS = (
    "ball", "teddy bear", "doll", "toy car", "toy train", "toy truck", "toy robot",
    "stuffed bunny", "wooden duck", "toy horse", "toy airplane",
)  # fmt: skip
PLACES = (
    Place("garden", ("under a rose bush", "behind the watering can", "between two sunflowers")),
    Place("park", ("under the slide", "behind a bench", "next to the swings")),
    Place("yard", ("under the apple tree", "behind the fence", "in a pile of leaves")),
    Place("meadow", ("in the tall grass", "behind a gray rock", "near a patch of daisies")),
)

FOODS = (
    "cheese sandwiches", "apple pie", "chocolate cake", "warm bread", "sweet grapes",
    "blueberry muffins", "juicy peaches", "oatmeal cookies",
)  # fmt: skip
