"""Plots about courage: a noise in the night, a hard new skill."""

from random import Random
from typing import NamedTuple

from slm.data.builtin import words
from slm.data.builtin.plots.scene import Tale, child, opening, parent, pick, tale


class Noise(NamedTuple):
    """A noise in the night and what really makes it."""

    sound: str
    where: str
    truth: str
    name: str


NOISES = (
    Noise("Tap, tap, tap", "the window", "a branch that tapped on the glass", "branch"),
    Noise("Scratch, scratch", "the door", "the cat, and it wanted to come in", "cat"),
    Noise("Creak, creak", "the window", "the old gate that moved in the wind", "gate"),
    Noise("Hoo, hoo", "the window", "a gray owl that sat in the tree", "owl"),
    Noise("Bump, bump", "the closet", "a ball that rolled off the shelf", "ball"),
    Noise("Drip, drip, drip", "the window", "the rain that dripped from the roof", "rain"),
    Noise("Squeak, squeak", "the closet", "a tiny mouse with a crumb of bread", "mouse"),
)


def dark_night(rng: Random) -> Tale:
    """A child is afraid of the dark and finds out what the noise is."""
    a, p, noise = child(rng, ("Mia", "Ben")), parent(rng), rng.choice(NOISES)
    friend = pick(rng, "teddy bear", "stuffed bunny", "toy lion", "toy rabbit", "rag doll")
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} was brave all day, but {a.he} was afraid of the dark.",
                    f"{a} liked the sun and the day, but {a.he} did not like the dark.",
                    f"{a} never wanted to turn off the lamp at bedtime.",
                ),
                (
                    "lay in bed and heard a strange noise",
                    "woke up because there was a strange noise",
                ),
                ("night", "windy night", "cold night", "dark night", "autumn night"),
            )
        ],
        [
            f'"{noise.sound}!" it went. The noise came from {noise.where}.',
            (
                f"{a} pulled the blanket over {a.his} head and held {a.his} {friend} tight.",
                f"{a}'s heart beat fast, and {a.he} hugged {a.his} {friend}.",
            ),
        ],
        [
            (
                f'At last, {a} called, "{p}! {p}!" {p} came with a small lamp.',
                f'"{p}! Please come!" {a} called. {p} came and sat down on the bed.',
            ),
            (
                f'"I am scared," said {a}. "There is something at {noise.where}."'
                if noise.where != "the closet"
                else f'"I am scared," said {a}. "There is something in the closet."',
                "",
            ),
            (
                f'{p} hugged {a}. "Brave people get scared too. Let us look together," said {p}.',
                f'{p} smiled. "Take my hand, and we will look together," said {p}.',
            ),
        ],
        [
            (
                f"{a} took a deep breath. Step by step, they went to {noise.where}.",
                f"{a} held {p}'s hand. Slowly, they walked to {noise.where}.",
            ),
            (
                f"{a} counted to three and looked. It was only {noise.truth}!",
                f"{a} was scared, but {a.he} looked. It was just {noise.truth}!",
            ),
        ],
        [
            (
                f'"You were very brave," said {p} and gave {a} a kiss.',
                f'"I am proud of you," said {p} and hugged {a}.',
            ),
            (
                f"{a} closed {a.his} eyes and soon fell asleep.",
                f"{a} lay down with {a.his} {friend} and had sweet dreams.",
                "",
            ),
            (
                f"After that night, {a} was not afraid of the dark any more.",
                f"From then on, {a} was not scared of noises in the night.",
            ),
        ],
    )


class Skill(NamedTuple):
    """Something to learn: the try that fails, a tip and the success."""

    verb: str
    place: str
    fail: str
    tip: str
    success: str


SKILLS = (
    Skill(
        "ride a bike",
        "went to the park",
        "the bike fell over",
        "Look ahead and keep your feet moving",
        "rode all the way to the bench",
    ),
    Skill(
        "swim",
        "went to the pool",
        "water got into {his} nose",
        "Kick your legs and breathe slowly",
        "swam all the way to the other side",
    ),
    Skill(
        "climb the apple tree",
        "went to the garden",
        "{his} foot slipped, and {he} landed in the grass",
        "Hold on with both hands and take small steps",
        "climbed up to the first big branch",
    ),
    Skill(
        "skate",
        "went to the frozen pond",
        "{he} fell down on the ice",
        "Bend your knees and take small steps",
        "skated in a big circle",
    ),
    Skill(
        "jump rope",
        "went to the yard",
        "the rope got caught on {his} shoes",
        "Listen to the sound of the rope and then jump",
        "jumped ten times in a row",
    ),
    Skill(
        "tie a bow",
        "sat on the steps",
        "the shoelace came open again",
        "Make two loops, like the ears of a bunny",
        "tied a neat bow on each shoe",
    ),
    Skill(
        "catch a ball",
        "went to the yard",
        "the ball flew past {his} hands",
        "Keep your eyes on the ball",
        "caught the ball five times in a row",
    ),
    Skill(
        "whistle",
        "sat on the porch",
        "only air came out of {his} mouth",
        "Make your lips small and round, and blow softly",
        "whistled a happy song like a bird",
    ),
)


def learning(rng: Random) -> Tale:
    """A child wants to learn something and tries again until it works."""
    a, p, skill = child(rng, ("Anna", "Tim")), parent(rng), rng.choice(SKILLS)
    fail = skill.fail.format(he=a.he, his=a.his)
    winter = "frozen" in skill.place
    days = ("winter day", "cold morning") if winter else words.DAYS
    return tale(
        rng,
        (a, p),
        [
            opening(
                rng,
                a,
                (
                    f"{a} wanted to learn how to {skill.verb}.",
                    f"{a}'s big wish was to learn how to {skill.verb}.",
                    f"All of {a.his} friends could {skill.verb}, but {a} could not.",
                ),
                f"{skill.place} with {p}",
                days,
            )
        ],
        [
            (
                f'"I can do it!" said {a}. {a.he} tried, but {fail}.',
                f'"Watch me, {p}!" said {a}. {a.he} tried, but {fail}.',
            ),
            (
                f'"It is too hard! I will never learn it," {a} cried.',
                f'"I give up," said {a} with tears in {a.his} eyes.',
            ),
        ],
        [
            (
                f'{p} sat down next to {a}. "It was hard for me too when I was small," said {p}.',
                f'{p} gave {a} a hug. "Nobody can do it on the first day," said {p}.',
            ),
            f'"{skill.tip}. I will stay close to you."',
        ],
        [
            (
                f"{a} tried again every day, and every day {a.he} got a little better.",
                f"{a} practiced all week, and it was a bit easier each time.",
            ),
            (
                f"Then, on Sunday, {a} took a deep breath and tried again.",
                f"Then, one evening, {a} thought of {p}'s words and tried again.",
            ),
            f"This time it worked! {a} {skill.success}.",
        ],
        [
            (
                f'"I did it! I did it!" {a} shouted.',
                f'"Look, {p}! I can do it now!" {a} shouted.',
            ),
            (
                f"{p} clapped and cheered. {a} felt very proud.",
                f"{p} was so happy and lifted {a} high into the air.",
                "",
            ),
            (
                f"{a} learned that you must try again and never give up.",
                f'Before bed, {a} smiled. "What can I learn next?" {a.he} asked.',
                f"That night, {a} dreamed about {a.his} great day.",
            ),
        ],
    )
