"""Plots about friends: a lost toy, a quarrel, a new neighbor."""

from random import Random
from typing import NamedTuple

from slm.data.builtin import words
from slm.data.builtin.plots.scene import Tale, children, opening, pair_opening, tale, with_article


def lost_toy(rng: Random) -> Tale:
    """A child loses a toy, and a friend helps to find it."""
    a, b = children(rng, ("Lucy", "Max"), ("Sara", "Sam"))
    color, toy, place = rng.choice(words.COLORS), rng.choice(words.TOYS), rng.choice(words.PLACES)
    thing = f"{color} {toy}"
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"{a} loved {a.his} {thing} more than any other toy.",
                    f"{a} took {a.his} {thing} almost everywhere.",
                    f"{a} played with {a.his} {thing} every day.",
                ),
                (
                    f"wanted to play with {a.his} {thing}, but it was gone",
                    f"looked for {a.his} {thing}, but it was not in the toy box",
                    f"woke up and could not find {a.his} {thing}",
                ),
            )
        ],
        [
            (
                f"{a} looked under the bed. {a.he} looked behind the door.",
                f"{a} looked under the table. {a.he} looked in every drawer.",
                f"{a} looked behind the curtain. {a.he} looked inside the closet.",
                "",
            ),
            (
                f'"Oh no! Where is my {toy}?" {a} cried.',
                f'"My {toy} is lost," {a} said and began to cry.',
            ),
        ],
        [
            f"Just then, {a.his} friend {b} came to the door.",
            (
                f'"Why are you so sad?" asked {b}. "I lost my {toy}," said {a}.',
                f'"What is wrong?" asked {b}. "I cannot find my {toy}," said {a}.',
            ),
            (
                f'"Do not worry. I will help you," said {b}. "Where did you play last?"',
                f'"Let us look for it together," said {b}. "Where were you yesterday?"',
            ),
            f'{a} thought hard. "In the {place.name}!" {a.he} said.',
        ],
        [
            (
                f"The two friends ran to the {place.name} and looked all around.",
                f"So {a} and {b} hurried to the {place.name} and began to search.",
            ),
            f"Then {b} saw something {color} {rng.choice(place.spots)}.",
            (
                f'"Look over there!" {b} shouted. It was the {toy}!',
                f'"I found it!" {b} called. It was the {thing}!',
            ),
        ],
        [
            (
                f'{a} hugged the {toy}, and then {a.he} hugged {b}. "Thank you," {a.he} said.',
                f'"Thank you, {b}! You are a good friend," said {a} with a big smile.',
            ),
            (
                f"From that day on, {a} always put the {toy} back in its place.",
                f"{a} learned that a hard thing is easier with a friend.",
                f"That night, {a} slept with the {toy} in {a.his} arms.",
            ),
        ],
    )


class Prize(NamedTuple):
    """A thing two friends both want, and how they can use it together."""

    noun: str
    place: str
    idea: str
    fun: str


PRIZES = (
    Prize(
        "wagon",
        "in the yard",
        "You can sit in it first, and I will pull you. Then we will trade",
        "rode up and down the path",
    ),
    Prize(
        "swing",
        "at the playground",
        "You can go first, and I will push you. Then it is my turn",
        "took turns and flew high in the air",
    ),
    Prize(
        "drum",
        "in the music room",
        "You can play first, and I will sing. Then we will trade",
        "made a funny song together",
    ),
    Prize(
        "toy train",
        "on the rug",
        "You can drive it first, and I will build a bridge. Then we will trade",
        "built a long track around the room",
    ),
    Prize(
        "ball",
        "on the grass",
        "I will throw it to you, and you can throw it back to me",
        "threw the ball back and forth and laughed",
    ),
    Prize(
        "shovel",
        "in the sandbox",
        "You can dig first, and I will carry the sand. Then we will trade",
        "made the tallest hill of sand in the park",
    ),
    Prize(
        "scooter",
        "on the sidewalk",
        "You can ride to the big tree and back. Then it is my turn",
        "rode to the big tree and back many times",
    ),
    Prize(
        "paintbrush",
        "in the art room",
        "You can paint the sky first, and then I will paint the grass",
        "painted a picture of a house and a rainbow",
    ),
)


def sharing(rng: Random) -> Tale:
    """Two friends quarrel about a thing and learn to share it."""
    a, b = children(rng, ("Emma", "Jack"), ("Zoe", "Leo"))
    prize, color = rng.choice(PRIZES), rng.choice(words.COLORS)
    noun = prize.noun
    return tale(
        rng,
        (a, b),
        [
            pair_opening(
                rng,
                a,
                b,
                (
                    "They liked to play together after lunch.",
                    "They almost never had a fight.",
                    "They did everything together.",
                ),
                f"saw {with_article(color)} {noun} {prize.place}",
            )
        ],
        [
            (
                f'"I want it!" said {a}. "No, I saw it first!" said {b}.',
                f'"It is mine!" shouted {a}. "No, it is mine!" shouted {b}.',
            ),
            (
                f'At last, {b} got angry. "I do not want to play with you!" said {b}.',
                f'Then {b} began to cry. "You are not nice to me," said {b}.',
            ),
            f"{b} went away and sat down under a tree."
            if prize.place not in ("on the rug", "in the music room", "in the art room")
            else f"{b} went away and sat down in a corner.",
        ],
        [
            (
                f"Now {a} had the {noun} and could play alone. But it was not fun at all.",
                f"Now the {noun} belonged only to {a}. But playing alone was boring.",
            ),
            (
                f"{a} looked at {b} and felt sad. A friend was better than any {noun}.",
                f'"I miss my friend," thought {a}. {a.he} felt sorry and had an idea.',
            ),
        ],
        [
            (
                f'{a} walked over to {b}. "I am sorry," {a.he} said.',
                f'{a} sat down next to {b}. "I was not kind. I am sorry," {a.he} said.',
            ),
            f'"Let us share the {noun}. {prize.idea}."',
            (
                f'{b} looked up and smiled. "I am sorry too," said {b}.',
                f'{b} looked up and nodded. "I like your idea," said {b}.',
            ),
        ],
        [
            f"Soon {a} and {b} {prize.fun}.",
            (
                f"{a} and {b} learned that sharing makes a game better.",
                f"After that, {a} and {b} always took turns.",
                "Then the two friends walked home hand in hand.",
            ),
        ],
    )


class Hobby(NamedTuple):
    """Something that a shy child likes, and what the two do with it."""

    gift: str
    likes: str
    fun: str


HOBBIES = (
    Hobby("a drawing of two smiling suns", "I like to draw too", "drew animals with crayons"),
    Hobby("a plate of warm cookies", "I like to bake too", "baked a small cake"),
    Hobby("a book about dragons", "I like stories too", "read the book on the steps"),
    Hobby("a basket of strawberries", "I love strawberries", "ate strawberries in the sunshine"),
    Hobby("a box of puzzle pieces", "I love puzzles", "made a puzzle of a castle"),
    Hobby("a paper boat", "I like to make boats too", "made a whole row of paper boats"),
    Hobby("a jar of colorful beads", "I like to make things too", "made two bracelets"),
    Hobby("a little pot with a daisy", "I love flowers", "planted more flowers by the gate"),
)


def new_neighbor(rng: Random) -> Tale:
    """A shy child moves in next door and finds a friend."""
    a, b = children(rng, ("Nora", "Finn"), ("Ella", "Noah"))
    hobby = rng.choice(HOBBIES)
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"{a} was friendly and liked to meet new people.",
                    f"{a} wished for a friend to play with.",
                    f"{a} knew everyone on {a.his} street.",
                ),
                (
                    "saw a big truck in front of the house next door",
                    "looked out of the window and saw a new family next door",
                ),
            ),
            f"A {b.kind} named {b} was moving in.",
        ],
        [
            (
                f'{a} ran to the fence and waved. "Hello! I am {a}!" {a.he} called.',
                f'{a} went outside at once. "Hi! Do you want to play?" {a.he} shouted.',
            ),
            (
                f"But {b} was very shy. {b} looked at the ground and ran inside.",
                f"But {b} did not say a word and hid behind the door.",
            ),
        ],
        [
            (
                f'Then {a} had an idea. "Maybe I was too loud," {a.he} said.',
                f'Then {a} had an idea. "A new place can be scary," {a.he} said.',
            ),
            f"{a} put {hobby.gift} in front of {b}'s door and sat down quietly on the steps.",
        ],
        [
            (
                f"Slowly, the door opened, and {b} looked out.",
                f"After a while, {b} opened the door and peeked out.",
            ),
            f'"Is this for me?" {b} asked in a soft voice. "Yes," said {a}. "Welcome!"',
            (
                f'For the first time, {b} smiled. "Thank you. {hobby.likes}," said {b}.',
                f'{b} came out and sat down next to {a}. "{hobby.likes}," said {b}.',
            ),
        ],
        [
            f"That afternoon, {a} and {b} {hobby.fun}.",
            (
                "Soon they were best friends and played together every day.",
                f"{a} was glad that {a.he} had been gentle and patient.",
                "They waved to each other from their windows every night.",
            ),
        ],
    )
