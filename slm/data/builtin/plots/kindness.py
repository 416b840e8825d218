"""Plots about kindness: a hurt animal, a hungry winter, a lost baby."""

from random import Random
from typing import NamedTuple

from slm.data.builtin import words
from slm.data.builtin.plots.scene import Tale, animals, child, opening, parent, tale, with_article


class Patient(NamedTuple):
    """An animal in trouble, how it is cared for and what becomes of it."""

    noun: str
    spot: str
    trouble: str
    care: str
    food: str
    well: str
    ending: str


PATIENTS = (
    Patient(
        "bird",
        "under a tall tree",
        "Its wing was hurt, and it could not fly",
        "made a soft nest in a box for the bird",
        "seeds",
        "it flapped its wings and flew around the room",
        "opened the window, and the bird flew up into the blue sky. "
        "After that, it often came back to sing a song",
    ),
    Patient(
        "kitten",
        "under a bush",
        "It had a thorn in its paw, and it could not walk",
        "pulled out the thorn and washed the little paw",
        "fish",
        "it ran across the room and played with a ball of yarn",
        "asked everyone in the street, but the kitten had no home. "
        "So it stayed and slept on the bed every night",
    ),
    Patient(
        "puppy",
        "next to the road",
        "One of its legs was hurt, and it could not stand up",
        "washed the leg and put a clean bandage on it",
        "meat",
        "it jumped up and wagged its tail",
        "asked everyone in town, but the puppy had no home. "
        "So it stayed and became part of the family",
    ),
    Patient(
        "hedgehog",
        "beside the path",
        "It was cold and too weak to move",
        "put the hedgehog in a warm box with dry leaves",
        "food",
        "it walked around and sniffed the air",
        "carried the hedgehog to the garden, and it went off into the tall grass. "
        "Sometimes, in the evening, it came back to say hello",
    ),
    Patient(
        "duckling",
        "near the pond",
        "An old string was wrapped tightly around its foot",
        "cut the string with small scissors and washed the foot",
        "oats",
        "it walked around the kitchen and quacked loudly",
        "carried the duckling to the pond, and it swam straight to the other ducks. "
        "All of them quacked, as if to say thank you",
    ),
    Patient(
        "rabbit",
        "by the old fence",
        "Its leg was caught in a wire",
        "put a soft bandage around the leg",
        "carrots",
        "it hopped from one end of the room to the other",
        "carried the rabbit to the meadow, and it hopped away into the grass. "
        "It turned around once, as if to say thank you",
    ),
)


def hurt_animal(rng: Random) -> Tale:
    """A child finds a hurt animal and takes care of it."""
    a, p, it = child(rng, ("Molly", "Danny")), parent(rng), rng.choice(PATIENTS)
    free = it.trouble.startswith("Its leg was caught")
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} loved all animals, big and small.",
                    f"{a} was always kind to animals.",
                    f"{a} wanted to become an animal doctor.",
                ),
                (
                    f"went for a walk and saw a small {it.noun} {it.spot}",
                    f"heard a soft cry and found a little {it.noun} {it.spot}",
                ),
            )
        ],
        [
            f"{it.trouble}.",
            (
                f'"Poor little {it.noun}! I want to help you," said {a}.',
                f'"Oh no, you are hurt!" said {a}. "Do not be afraid."'
                if "weak" not in it.trouble
                else f'"Oh no, you are so cold!" said {a}. "Do not be afraid."',
            ),
        ],
        [
            f"{a} carefully freed the leg and carried the {it.noun} home in {a.his} arms."
            if free
            else f"Then {a} carried the {it.noun} home in {a.his} arms.",
            f"{p} came to help, and together they {it.care}.",
            (f"{a} gave it {it.food} and fresh water.", ""),
        ],
        [
            (
                f'The next day, the {it.noun} did not eat. "Will it get well?" asked {a}.',
                f'The next day, the {it.noun} only slept. "Is it very sick?" asked {a}.',
            ),
            (
                f'"It needs time and love," said {p}.',
                f'"Be patient. It must rest," said {p}.',
            ),
            f"After a week, the {it.noun} was much better, and {it.well}.",
        ],
        [
            f"{a} and {p} {it.ending}.",
            (
                f"{a} was happy because {a.he} had helped a friend.",
                f'"You have a kind heart," said {p}, and {a} smiled.',
                f"{a} learned that love and time can make things better.",
                "",
            ),
        ],
    )


def hungry_winter(rng: Random) -> Tale:
    """An animal shares its winter food and later gets help in return."""
    a, b = animals(
        rng,
        ("Pippa", "Jasper"),
        ("Fern", "Tucker"),
        (words.SQUIRREL, words.MOUSE, words.BADGER),
        (words.RABBIT, words.FOX, words.DEER, words.HEDGEHOG),
    )
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"All autumn long, {a} had filled {a.his} home with {a.food} for the winter.",
                    f"{a} had worked hard all autumn and had a big pile of {a.food}.",
                ),
                "heard a soft knock at the door",
                ("cold day", "winter day", "snowy day", "winter night", "snowy evening"),
            )
        ],
        [
            f"Outside, in the snow, stood {with_article(b.kind)} named {b}.",
            (
                f'"I am so cold and hungry," said {b}. "My food is all gone."',
                f'"I have nothing to eat," said {b}. "The snow is too deep."',
            ),
            (
                f"{a} looked at the pile of {a.food}. Was there enough for two?",
                f"{a} thought about it. The winter was long, and there was not much food.",
                "",
            ),
        ],
        [
            (
                f'"Come in," said {a}. "What I have is enough for both of us."',
                f'"Please come in," said {a}. "We can share."',
            ),
            (
                f"{a} made hot soup and gave {b} a warm blanket.",
                f"They sat by the fire, and {a} made a big bowl of soup.",
            ),
        ],
        [
            (
                f"A few days later, a storm came, and the wind broke the door of {a}'s home.",
                f"A week later, heavy snow fell and covered {a}'s door. {a} could not get out.",
            ),
            f'Then {a} heard a voice. "I am here! Now I can help you," called {b}.',
            "The two worked hard, and soon everything was fine.",
        ],
        [
            (
                f"{a} and {b} spent the rest of the winter together and told stories.",
                f"{a} and {b} stayed together until the snow was gone.",
                "",
            ),
            (
                "When spring came, they were the best of friends.",
                f"{a} learned that a small gift can come back as a big one.",
            ),
        ],
    )


class Baby(NamedTuple):
    """A lost animal child and the place where its family is."""

    noun: str
    family: str
    clue: str
    place: str


BABIES = (
    Baby("duckling", "ducks", "My family likes to swim", "the pond"),
    Baby("lamb", "sheep", "My family eats green grass", "the meadow"),
    Baby("chick", "chickens", "My family lives near a red barn", "the farm"),
    Baby("bear cub", "bears", "My family sleeps in a dark cave", "the mountain"),
    Baby("piglet", "pigs", "My family likes to roll in the mud", "the farm"),
    Baby("baby beaver", "beavers", "My family builds houses in the water", "the river"),
    Baby("calf", "cows", "My family sleeps in a big barn", "the farm"),
)


def lost_baby(rng: Random) -> Tale:
    """An animal finds a lost baby and brings it back to its family."""
    a, b = animals(
        rng,
        ("Dolly", "Chip"),
        ("Lulu", "Otto"),
        (words.FOX, words.RABBIT, words.SQUIRREL, words.DEER, words.HEDGEHOG),
        (words.FROG, words.TURTLE, words.MOLE, words.MOUSE),
    )
    baby = rng.choice(BABIES)
    short = baby.noun.split()[-1]
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"{a} knew every path in the forest.",
                    f"{a} always tried to help others.",
                ),
                (
                    f"heard someone crying behind a tree. It was a {baby.noun}",
                    f"walked through the forest and met a {baby.noun} with sad eyes",
                ),
            )
        ],
        [
            (
                f'"Why are you crying?" asked {a}. "I am lost," said the little {short}.',
                f'"Are you alone?" asked {a}. "I lost my family," said the little {short}.',
            ),
            (
                f"{a} wanted to help. They looked behind the hill, but no one was there.",
                f"{a} wanted to help. They called as loud as they could, but no one answered.",
            ),
        ],
        [
            f"On the way, they met {b} the {b.kind}.",
            f'"{b}, did you see any {baby.family} today?" asked {a}. "No, I did not," said {b}.',
            f'"{baby.clue}," the {short} told {b}.',
            f'"Then you must go to {baby.place}!" said {b}.',
        ],
        [
            (
                f"So {a} and the {short} went to {baby.place} as fast as they could.",
                f"{a} showed the {short} the way to {baby.place}.",
            ),
            f"And there they were! A whole family of {baby.family} came to meet them.",
            (
                f'"Mama! Papa!" the {short} called and ran to them.',
                f'"We looked for you everywhere!" they said and kissed the {short}.',
            ),
        ],
        [
            (
                f"{a} waved and went home with a warm feeling inside.",
                f"They all ate together, and then {a} went home to sleep.",
            ),
            (
                f"The little {short} never went so far away again.",
                f"From then on, the little {short} had a new friend in the forest.",
                "",
            ),
        ],
    )
