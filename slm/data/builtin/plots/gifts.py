"""Plots about gifts: a present for grandma, a birthday, a visit to a sick friend."""

from random import Random
from typing import NamedTuple

from slm.data.builtin.plots.scene import (
    GRANDMA,
    Tale,
    animals,
    child,
    opening,
    parent,
    pick,
    tale,
    with_article,
)


class Gift(NamedTuple):
    """A present that a child makes, what spoils it and how it is saved."""

    noun: str
    making: str
    mishap: str
    fix: str
    use: str


GIFTS = (
    Gift(
        "card",
        "took paper and crayons and drew a big heart",
        "a drop of black ink fell on the paper",
        "drew wings around the black spot, and now it was a pretty butterfly",
        "put the card on the shelf next to her bed",
    ),
    Gift(
        "necklace",
        "put red and yellow beads on a string",
        "the string broke, and the beads rolled all over the floor",
        "picked up every bead and used a stronger string",
        "put on the necklace right away",
    ),
    Gift(
        "flower pot",
        "painted yellow stars on a clay pot",
        "the wet paint ran down and spoiled the stars",
        "turned the stars into suns with long golden rays",
        "planted a little rose in the pot",
    ),
    Gift(
        "scarf",
        "sat down and began to knit a scarf from soft blue wool",
        "there was a hole in the middle of it",
        "sewed a red flower over the hole",
        "put the scarf around her neck",
    ),
    Gift(
        "picture frame",
        "glued sea shells on a wooden frame",
        "two of the shells fell off and broke",
        "put a shiny button in each empty place",
        "put a family photo in the frame",
    ),
    Gift(
        "pillow",
        "filled a soft bag with feathers",
        "the bag ripped, and the feathers flew through the room",
        "caught the feathers and closed the hole with a green patch",
        "put the pillow on her rocking chair",
    ),
)


def present(rng: Random) -> Tale:
    """A child makes a present for grandma and saves it from a mishap."""
    a, p, gift, g = child(rng, ("Amy", "Oscar")), parent(rng), rng.choice(GIFTS), GRANDMA
    wanted = pick(rng, "hat", "clock", "teapot", "handbag", "music box", "umbrella")
    return tale(
        rng,
        (a, p, g),
        [
            opening(
                rng,
                a,
                (
                    f"{a} loved {a.his} grandma very much.",
                    f"{a}'s grandma told the best stories.",
                    f"{a} went to see {a.his} grandma every Sunday.",
                ),
                (
                    "wanted to buy a birthday present for Grandma",
                    "thought about a present for Grandma's birthday",
                ),
            )
        ],
        [
            (
                f"{a} saw a beautiful {wanted} in a shop, but it was too expensive.",
                f"{a} had only two coins, and that was not enough for a new {wanted}.",
            ),
            (
                f'"You can make something," said {p}. "Grandma will like that even more."',
                f'"The best presents are made with love," said {p}.',
            ),
        ],
        [
            f'"I will make a {gift.noun}!" said {a}. {a.he} {gift.making}.',
            (
                f"{a} worked very hard. But then {gift.mishap}.",
                f"It looked very nice. But suddenly {gift.mishap}.",
            ),
            (
                f'"Oh no! It is ruined," {a} cried.',
                f'"Everything is spoiled!" {a} said and began to cry.',
            ),
        ],
        [
            f'"You can fix it," said {p}.',
            (
                f"{a} thought for a long time. Then {a} {gift.fix}.",
                f"{a} dried {a.his} tears and had an idea. {a} {gift.fix}.",
            ),
            (
                f"The {gift.noun} was even prettier than before."
                if gift.noun != "necklace"
                else "Now the necklace was beautiful, and it could not break.",
                "",
            ),
        ],
        [
            (
                f'"Happy birthday, Grandma!" said {a} and gave her the {gift.noun}.',
                f'On her birthday, {a} gave Grandma the {gift.noun}. "I made it," said {a}.',
            ),
            f'"It is wonderful," said Grandma. "I will keep it forever." She {gift.use}.',
            (
                f"{a} was happy, because the best gifts come from the heart.",
                f"{a} never forgot how happy Grandma looked.",
            ),
        ],
    )


def surprise_birthday(rng: Random) -> Tale:
    """An animal thinks that its birthday is forgotten."""
    a, b = animals(rng, ("Bonnie", "Monty"), ("Willow", "Teddy"))
    gift = pick(
        rng,
        "a warm scarf",
        "a shiny bell",
        "a crown of flowers",
        "a little lantern",
        "a soft pillow",
        "a wooden flute",
        "a blue hat",
    )
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"{a} had many friends, and the best one was {with_article(b.kind)} named {b}.",
                    f"{a.his} best friend was {with_article(b.kind)} named {b}.",
                ),
                (
                    f'woke up very early. "Today is my birthday!" {a.he} said',
                    f'jumped out of bed. "Hooray, it is my birthday!" {a.he} said',
                ),
                ("day", "sunny morning", "bright morning", "spring morning", "fine morning"),
            )
        ],
        [
            f"{a} {a.went} to {b}'s home and knocked.",
            (
                f'"Do you know what day it is?" {a} asked. "It is a busy day," said {b}.',
                f'"Will you play with me today?" {a} asked. "I have no time," said {b}.',
            ),
            (
                f"{a} went to see the other animals, but no one was at home.",
                f"{a} looked for the other animals, but they were all gone.",
            ),
        ],
        [
            (
                f'{a} sat down on a log. "Everyone forgot my birthday," {a.he} said.',
                f'{a} sat by the water all alone. "Nobody remembers me," {a.he} said.',
            ),
            f"At last, {a} went home with slow steps.",
        ],
        [
            (
                f"But when {a} opened the door, the room was full of balloons.",
                f"But when {a} came home, there were lights everywhere.",
            ),
            f'"Surprise! Happy birthday, {a}!" all the animals shouted.',
            f'"I was busy because I baked you a cake," said {b}. "And this is for you."',
            f"It was {gift}.",
        ],
        [
            (
                f'{a} laughed and hugged {b}. "I am so happy," {a.he} said.',
                f'"You did not forget me!" said {a}, and {a.he} hugged {b}.',
            ),
            (
                "They danced and sang under the stars.",
                "They ate the cake and played games until late.",
                "",
            ),
            (
                f"It was the best birthday that {a} ever had.",
                f"That night, {a} knew that good friends never forget.",
            ),
        ],
    )


def sick_friend(rng: Random) -> Tale:
    """An animal visits a sick friend, loses the gift on the way, and cheers the friend up."""
    a, b = animals(rng, ("Maple", "Scout"), ("Cherry", "Ziggy"))
    gift, mishap = pick(
        rng,
        ("a pot of hot soup", "{a} slipped in the mud, and all the soup ran out of the pot"),
        ("a basket of berries", "{a} tripped over a root, and the berries rolled into the river"),
        ("a bunch of flowers", "a strong wind blew all the flowers away"),
        ("a honey cake", "{a} fell over a stone, and the cake landed in a puddle"),
        ("a jar of jam", "the jar fell on a rock and broke into pieces"),
    )
    cheer, after = pick(
        rng,
        ("told a funny story about a dancing frog", "story"),
        ("sang a silly song about the moon", "song"),
        ("played a game with shadows on the wall", "game"),
        ("did a funny dance with a spoon on the head", "dance"),
        ("put on a show with two socks", "show"),
    )
    if b.kind == "frog" and "frog" in cheer:
        cheer, after = "sang a silly song about the moon", "song"
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                f"{a.his} best friend was {with_article(b.kind)} named {b}.",
                f"heard that {b} was sick in bed",
                ("day", "day", "morning", "rainy day", "cool morning", "autumn day"),
            )
            if pick(rng, True, False)
            else opening(
                rng,
                a,
                f"{a} played with {b} the {b.kind} every day.",
                f"waited for {a.his} friend {b}, but {b} did not come, because {b} was sick",
                ("day", "day", "morning", "cloudy day", "cool morning", "autumn day"),
            ),
        ],
        [
            (
                f"{a} made {gift} and went out into the forest.",
                f"{a} worked all morning and made {gift}. Then {a} set out.",
            )
            if "bunch" not in gift and "berries" not in gift
            else f"{a} went out to pick {gift} and then set out through the forest.",
            f"But on the way, {mishap.format(a=a)}.",
        ],
        [
            (
                f'"Oh no! Now I have no gift," {a} cried.',
                f'"Everything is gone," said {a} sadly.',
            ),
            f"But {b} was waiting, so {a} {a.went} on without a gift.",
        ],
        [
            f'"I am sorry," {a} said at the door. "I had a gift for you, but I lost it."',
            (
                f'{b} smiled. "But you came to see me," said {b}. "That is the best gift."',
                f'But {b} was happy. "I was lonely, and now you are here," said {b}.',
            ),
            f"{a} stayed next to the bed and {cheer}.",
        ],
        [
            (
                f'The next morning, {b} felt much better. "Your {after} made me well," said {b}.',
                f'Two days later, {b} was well again. "It was your {after}," said {b}.',
            ),
            (
                f"{a} learned that time with a friend is better than any gift.",
                "They were happy, and they stayed friends forever.",
            ),
        ],
    )
