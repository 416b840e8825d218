"""What every plot is made of: a cast, an opening, sentences and paragraphs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from slm.data.builtin import words
from slm.data.builtin.words import HE, SHE, Creature, Pronouns

T = TypeVar("T")
Line = str | tuple[str, ...]
"""A piece of text, or several alternatives for it; "" leaves it out."""
Names = tuple[str, str]
"""Names of a character of a plot, as a girl and as a boy.

Every plot has a cast of its own, as the books of a series have: a model that trains for minutes
learns who belongs to which plot long before it learns to copy any name from the text above.
"""


@dataclass(frozen=True)
class Character:
    """Someone in a story; `str()` gives the name, `he` and its kin the right pronouns."""

    name: str
    kind: str
    pronouns: Pronouns
    home: str = ""
    food: str = ""
    went: str = "ran"

    def __str__(self) -> str:
        """The name."""
        return self.name

    @property
    def he(self) -> str:
        """The subject pronoun."""
        return self.pronouns.he

    @property
    def him(self) -> str:
        """The object pronoun."""
        return self.pronouns.him

    @property
    def his(self) -> str:
        """The possessive."""
        return self.pronouns.his

    @property
    def self(self) -> str:
        """The reflexive pronoun."""
        return self.pronouns.self


@dataclass(frozen=True)
class Tale:
    """A finished story and the characters in it."""

    cast: tuple[Character, ...]
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The story as one string, one paragraph per line."""
        return "\n".join(self.paragraphs)


Plot = Callable[[Random], Tale]

MOM = Character("Mom", "mom", SHE)
DAD = Character("Dad", "dad", HE)
GRANDMA = Character("Grandma", "grandma", SHE)
GRANDPA = Character("Grandpa", "grandpa", HE)


def pick(rng: Random, *options: T) -> T:
    """Chooses one of the options."""
    return rng.choice(options)


def with_article(noun: str) -> str:
    """Puts "a" or "an" before a noun phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def sentence_case(text: str) -> str:
    """Makes the first letter of every sentence a capital."""
    return re.sub(r'(^|[.!?] |\." )([a-z])', lambda m: m[1] + m[2].upper(), text)


def choose(rng: Random, line: Line) -> str:
    """The line itself, or one of its alternatives."""
    return line if isinstance(line, str) else rng.choice(line)


def tale(rng: Random, cast: tuple[Character, ...], *paragraphs: Sequence[Line]) -> Tale:
    """Chooses one alternative for each line, which may be "", and joins the lines."""
    texts = (" ".join(filter(None, (choose(rng, line) for line in lines))) for lines in paragraphs)
    return Tale(cast, tuple(sentence_case(text) for text in texts))


def child(rng: Random, names: Names) -> Character:
    """A child: the girl or the boy of the two names."""
    name, kind, pronouns = pick(rng, (names[0], "girl", SHE), (names[1], "boy", HE))
    return Character(name, kind, pronouns, rng.choice(words.CHILD_HOMES))


def children(rng: Random, first: Names, second: Names) -> tuple[Character, Character]:
    """Two children."""
    return child(rng, first), child(rng, second)


def parent(rng: Random) -> Character:
    """Mom or Dad."""
    return pick(rng, MOM, DAD)


def animals(
    rng: Random,
    first_names: Names,
    second_names: Names,
    first: Sequence[Creature] = words.CREATURES,
    second: Sequence[Creature] = words.CREATURES,
) -> tuple[Character, Character]:
    """Two animals of different kinds."""
    one = rng.choice(first)
    other = rng.choice([creature for creature in second if creature is not one])
    cast: list[Character] = []
    for creature, names in ((one, first_names), (other, second_names)):
        name, pronouns = pick(rng, (names[0], SHE), (names[1], HE))
        cast.append(
            Character(name, creature.noun, pronouns, creature.home, creature.food, creature.went)
        )
    return cast[0], cast[1]


def opening(
    rng: Random,
    hero: Character,
    about: Line,
    event: Line,
    days: Sequence[str] = words.DAYS,
) -> str:
    """Introduces the hero and tells how it all began.

    Args:
        rng: The source of choices.
        hero: The main character.
        about: A sentence about the hero that reads well before and after the event.
        event: What the hero did, without the subject and the full stop.
        days: The times that suit the event, to follow "One".
    """
    intro = f"{with_article(rng.choice(words.TRAITS))} {hero.kind} named {hero}"
    day = rng.choice(days)
    about, event = choose(rng, about), choose(rng, event)
    then = f"One {day}, {hero} {event}."
    return pick(
        rng,
        f"Once upon a time, there was {intro}. {about} {then}",
        f"Once upon a time, there was {intro}. {about} {then}",
        f"Once upon a time, there was {intro}. {about} {then}",
        f"Once upon a time, {intro} lived {hero.home}. {about} {then}",
        f"Once upon a time, {intro} lived {hero.home}. {about} {then}",
        f"There was once {intro}. {about} {then}",
        f"One {day}, {intro} {event}. {about}",
    )


def pair_opening(
    rng: Random,
    a: Character,
    b: Character,
    about: Line,
    event: Line,
    days: Sequence[str] = words.DAYS,
    land: str = "on the same street",
) -> str:
    """Introduces two friends; the arguments are those of `opening`.

    Args:
        rng: The source of choices.
        a: The first friend.
        b: The second friend.
        about: A sentence about both that reads well before and after the event.
        event: What the two did, without the subject and the full stop.
        days: The times that suit the event, to follow "One".
        land: Where both of them live.
    """
    day = rng.choice(days)
    if a.kind == b.kind:
        both = f"two {a.kind}s named {a} and {b}"
    else:
        both = f"{with_article(a.kind)} named {a} and {with_article(b.kind)} named {b}"
    about, event = choose(rng, about), choose(rng, event)
    then = f"One {day}, {a} and {b} {event}."
    return pick(
        rng,
        f"Once upon a time, there were two friends named {a} and {b}. {about} {then}",
        f"Once upon a time, there were two good friends. Their names were {a} and {b}. "
        f"{about} {then}",
        f"Once upon a time, {both} lived {land}. {about} {then}",
        f"Once upon a time, {both} were best friends. {about} {then}",
        f"One {day}, two friends named {a} and {b} {event}. {about}",
    )
