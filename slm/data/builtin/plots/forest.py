"""Plots among animals: a race, a bridge, a loud voice, a small hero."""

from random import Random
from typing import NamedTuple

from slm.data.builtin import words
from slm.data.builtin.plots.scene import Tale, animals, opening, pick, tale, with_article


def race(rng: Random) -> Tale:
    """A slow animal wins a race because the fast one is too sure."""
    slow, fast = animals(
        rng,
        ("Poppy", "Bruno"),
        ("Honey", "Fuzzy"),
        (words.TURTLE, words.MOLE, words.HEDGEHOG, words.DUCK),
        (words.RABBIT, words.FOX, words.DEER, words.SQUIRREL),
    )
    goal = pick(rng, "the old bridge", "the big rock", "the tall pine tree", "the red barn")
    stop, late = pick(
        rng,
        ("lay down in the shade and fell asleep", "woke up"),
        (f"stopped to eat some {fast.food}", "was full"),
        ("stopped to look at {self} in the water", "looked up"),
        ("ran after a yellow butterfly", "came back to the path"),
    )
    stop = stop.format(self=fast.self)
    return tale(
        rng,
        (slow, fast),
        [
            opening(
                rng,
                slow,
                (
                    f"{slow} was very slow, but {slow.he} never gave up.",
                    f"{slow} did everything slowly and with care.",
                ),
                f"met {with_article(fast.kind)} named {fast}",
            ),
            (
                f"{fast} was the fastest animal in the forest and told everyone about it.",
                f"{fast} could run like the wind and was very proud of it.",
            ),
        ],
        [
            (
                f'"You are so slow!" laughed {fast}. "Do you ever get anywhere?"',
                f'"Look at you!" laughed {fast}. "A snail is faster than you!"',
            ),
            (
                f'{slow} did not get angry. "Let us have a race to {goal}," said {slow}.',
                f'{slow} was not angry. "Let us run to {goal} and see who wins," said {slow}.',
            ),
        ],
        [
            (
                f'"One, two, three, go!" called the old owl. {fast} was gone in a moment.',
                f'"Ready, set, go!" called the old owl. {fast} ran off in a cloud of dust.',
            ),
            f"Soon {fast} looked back and could not see {slow}.",
            f"So {fast} {stop}.",
        ],
        [
            f"When {fast} {late}, {slow} was almost at {goal}!",
            (
                f"{fast} ran as fast as the wind, but it was too late.",
                f"{fast} ran and ran, but there was not enough time.",
                "",
            ),
            f"{slow} won the race, and all the animals cheered.",
        ],
        [
            (
                f'"I am sorry that I laughed at you," said {fast}.',
                f'"You were better than me today," said {fast} in a quiet voice.',
            ),
            (
                f'"It is all right," said {slow}. "Let us be friends."',
                f'"Next time, we can walk together," said {slow}.',
                "",
            ),
            (
                f"From that day on, {fast} did not laugh at slow animals.",
                "Slow and steady is sometimes the best way.",
                f"{fast} and {slow} walked home side by side.",
            ),
        ],
    )


def bridge(rng: Random) -> Tale:
    """Two animals on two sides of a stream build a bridge together."""
    strong = (words.BEAR, words.BADGER, words.DEER, words.FOX)
    a, b = animals(
        rng,
        ("Penny", "Buddy"),
        ("Mimi", "Rocky"),
        (words.RABBIT, words.SQUIRREL, words.HEDGEHOG, words.MOUSE),
        strong,
    )
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"Every day, {a} sat by the stream and looked across.",
                    f"{a} loved the water, but {a.he} could not swim.",
                ),
                f"saw {with_article(b.kind)} named {b} on the other side of the stream",
            ),
            (
                f'"Hello!" called {a}. "I wish we could play together!"',
                f'"Hello over there!" called {a}. "Can you come to me?"',
            ),
        ],
        [
            (
                f"{a} tried to jump from stone to stone, but the stones were wet.",
                f"{a} tried to cross on a leaf, but the leaf began to sink.",
            ),
            f"Splash! {a} fell into the water and had to crawl out again.",
        ],
        [
            f'"Wait," called {b}. "There is a long log here. It could be a bridge."',
            f'{a} jumped up. "I have a rope! You push, and I will pull!" said {a}.',
        ],
        [
            f"{a} threw the rope over, and {b} tied it to the log. They pushed and pulled.",
            "At last, the log lay across the stream. It was a real bridge!",
        ],
        [
            (
                f"{a} walked over the log with small steps, and {b} was waiting on the other side.",
                f"{a} and {b} met in the middle of the bridge and hugged each other.",
            ),
            (f'"What one cannot do, two can do," said {b}.', ""),
            (
                "Now all the animals could cross the stream and visit each other.",
                f"After that, {a} and {b} were friends for life.",
            ),
        ],
    )


def noisy_song(rng: Random) -> Tale:
    """An animal with a strange voice is laughed at, and then the voice helps everyone."""
    a, b = animals(
        rng,
        ("Tilly", "Barney"),
        ("Coco", "Milo"),
        (words.FROG, words.DUCK, words.BEAR, words.FOX),
        (words.MOUSE, words.RABBIT, words.DEER, words.OTTER),
    )
    danger, result = pick(
        rng,
        ("a thick fog came, and {b} could not find the way home", "followed the sound home"),
        ("{b} got lost in the dark part of the forest", "followed the sound out of the trees"),
        ("a storm came, and {b} was alone in a boat on the lake", "rowed toward the sound"),
        (
            "the night was very dark, and {b} could not see the path",
            "followed the sound to the path",
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
                    f"{a} loved to sing, but {a.his} voice was loud and rough.",
                    f"{a} sang all day long, but it did not sound very nice.",
                ),
                "wanted to sing with the other animals",
                ("day", "day", "evening", "summer evening", "quiet morning"),
            ),
            f"{with_article(b.kind)} named {b} was there too.",
        ],
        [
            (
                f'{b} covered both ears. "Please stop!" said {b}. "You are too loud!"',
                f'{b} shook with laughter. "You sound like a broken horn!" said {b}.',
            ),
            (
                f"{a} went home and did not sing any more.",
                f'{a} was very sad. "I will never sing again," said {a}.',
            ),
        ],
        [
            f"A few days later, {danger.format(b=b)}.",
            f'"Help! Where am I?" cried {b}, but no one was near.',
        ],
        [
            f'Then {a} had an idea. "My loud voice can help," {a.he} said.',
            (
                f"{a} climbed up on a rock and sang as loud as {a.he} could.",
                f"{a} took a deep breath and sang {a.his} loudest song.",
            ),
            f"Far away, {b} heard it and {result}.",
        ],
        [
            (
                f'"Your voice saved me," said {b}. "I am sorry that I was mean."',
                f'"I am glad that you are so loud," said {b}. "Please forgive me."',
            ),
            (
                f"That night, everyone sang together, and {a} sang the loudest of all.",
                f"From then on, the animals asked {a} to sing at every party.",
                "",
            ),
            (
                "Everyone learned that being different can be a good thing.",
                f"{a} was proud of {a.his} big voice.",
            ),
        ],
    )


class Trap(NamedTuple):
    """A trouble of a big animal that only a small one can mend."""

    trouble: str
    tried: str
    deed: str


TRAPS = (
    Trap(
        "stepped on a sharp thorn, and it stuck in {his} foot",
        "tried to pull it out, but {his} feet were too big",
        "took the thorn in two tiny paws and pulled it out",
    ),
    Trap(
        "walked into an old net, and it held {him} tight",
        "pulled and pulled, but the net only got tighter",
        "bit through the ropes, one by one, until the net fell open",
    ),
    Trap(
        "lost the key to {his} house in a narrow crack between two rocks",
        "reached into the crack, but {his} arm was too thick",
        "slipped into the narrow crack and came back with the key",
    ),
    Trap(
        "got {his} head stuck in an old pot and could not see",
        "pulled and shook {his} head, but the pot did not move",
        "rubbed the edge of the pot with butter until it slid off",
    ),
)


def small_and_big(rng: Random) -> Tale:
    """A big animal laughs at a small one and then needs its help."""
    a, b = animals(
        rng,
        ("Ginger", "Gus"),
        ("Daisy", "Pip"),
        (words.MOUSE, words.SQUIRREL, words.MOLE),
        (words.BEAR, words.BADGER),
    )
    trap = rng.choice(TRAPS)
    trouble = trap.trouble.format(his=b.his, him=b.him)
    return tale(
        rng,
        (a, b),
        [
            opening(
                rng,
                a,
                (
                    f"{a} was very small, but {a.he} had a big heart.",
                    f"{a} was the smallest animal in the forest, but {a.he} was brave.",
                ),
                f"met a big {b.kind} named {b}",
            ),
            (
                f'"Can I play with you?" {a} asked.',
                f'"Hello! Do you want to be my friend?" {a} asked.',
            ),
        ],
        [
            (
                f'{b} laughed. "You are too small. You cannot help anyone," said {b}.',
                f'{b} looked down and laughed. "What can such a tiny {a.kind} do?" said {b}.',
            ),
            (
                f"{a} was sad and went away without a word.",
                f'"Small animals can do big things," said {a} and went home.',
            ),
        ],
        [
            pick(rng, "The next day,", "A few days later,") + f" {b} {trouble}.",
            (f"{b} {trap.tried.format(his=b.his)}.", ""),
            (
                f'"Help! Please help me!" {b} cried.',
                f'"Oh dear! Is anyone there?" {b} called.',
            ),
        ],
        [
            f"{a} heard the call and {a.went} through the grass.",
            (
                f'"I will help you," said {a}. "But you are so small," said {b}. {a} only smiled.',
                f'"I will help you," said {a}. "After I laughed at you?" asked {b}. {a} nodded.',
            ),
            f"Then {a} {trap.deed}.",
        ],
        [
            (
                f'"Thank you," said {b}. "I was wrong. You are a great helper."',
                f'"I am sorry that I laughed," said {b}. "You saved me."',
            ),
            (
                "From that day on, the big friend and the small friend were always together.",
                f"{b} never laughed at small animals again.",
                "They learned that a friend can be any size.",
            ),
        ],
    )
