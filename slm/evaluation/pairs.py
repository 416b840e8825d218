"""Minimal pairs: a passage as its author wrote it, and the same with one error.

After the idea of BLiMP (Warstadt et al. 2020, arXiv 1912.00582), for whole stories. A model passes
a pair if it finds the right passage likelier. The rules work on text and draw from a seed and the
story, so that every tokenizer and every machine gets the same pairs.

A model that knows nothing but word frequencies is at chance, 50 %, in each family: replacements
come from the same distribution as the originals (another story's name, another story's ending), and
a swap of two words is used equally often in both directions.
"""

import hashlib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"”’)]*|[^.!?]+$")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_LONGEST = 350
"""Characters of a judged passage: few enough for a context of 128 tokens."""

GIRLS = (
    "Amy", "Anna", "Daisy", "Ella", "Emily", "Emma", "Jane", "Jill", "Julia", "Kate",
    "Kitty", "Lila", "Lily", "Lisa", "Lucy", "Mandy", "Mary", "Mia", "Molly", "Nina",
    "Rosie", "Sally", "Sara", "Sarah", "Sophie", "Sue", "Susie", "Zoe",
)  # fmt: skip
BOYS = (
    "Alex", "Ben", "Bill", "Billy", "Bob", "Bobby", "Charlie", "Dan", "David", "Fred",
    "George", "Jack", "Jake", "James", "Jim", "Jimmy", "Joe", "John", "Johnny", "Leo",
    "Mark", "Mike", "Pete", "Peter", "Sam", "Timmy", "Tim", "Tom", "Tommy",
)  # fmt: skip


@dataclass(frozen=True)
class Passage:
    """A text to be judged, after a context that is only read."""

    context: str
    judged: str


@dataclass(frozen=True)
class Pair:
    """A right passage and a wrong one."""

    right: Passage
    wrong: Passage


def sentences(story: str) -> list[str]:
    """A story's sentences, each with the white space before it: joined they are the story."""
    return _SENTENCE.findall(story.rstrip())


def make_pairs(stories: Sequence[str], seed: int, count: int) -> dict[str, list[Pair]]:
    """Pairs of each family, at most one from a story (two in "agreement": number and tense).

    Opposite pairs are neighbours, and are included or left out together: of an odd `count` one
    pair fewer is kept. Some families find something to swap in one story of eight only.
    """
    return {
        family: [pair for pair in make(stories, seed) if _fits(pair)][: count - count % 2]
        for family, (make, _) in FAMILIES.items()
    }


def _fits(pair: Pair) -> bool:
    return max(len(pair.right.judged), len(pair.wrong.judged)) <= _LONGEST


def _dice(seed: int, *what: str) -> random.Random:
    """Random numbers that depend on a text, but not on its position or Python's hashes."""
    digest = hashlib.sha256("\0".join([str(seed), *what]).encode(errors="replace")).digest()
    return random.Random(int.from_bytes(digest[:8]))


# ---- families -----------------------------------------------------------------------------


def _ending(stories: Sequence[str], seed: int) -> list[Pair]:
    split = [sentences(story) for story in stories]
    split = [parts for parts in split if len(parts) >= 5]
    pairs = []
    for parts, others in zip(split, split[1:] + split[:1], strict=True):
        own, other = "".join(parts[-2:]), "".join(others[-2:])
        if own != other:
            context = "".join(parts[:-2])
            pairs.append(Pair(Passage(context, own), Passage(context, other)))
    return pairs


def _order(stories: Sequence[str], seed: int) -> list[Pair]:
    pairs = []
    for story in stories:
        parts = sentences(story)
        if len(parts) < 6:
            continue
        dice = _dice(seed, "order", story)
        begin = dice.randrange(1, len(parts) - 4)
        ordered = [" " + part.strip() for part in parts[begin : begin + 4]]
        if len(set(ordered)) == 1:
            continue  # "Quack! Quack! Quack! Quack!" has no other order
        shuffled = ordered[:]
        while shuffled == ordered:
            dice.shuffle(shuffled)
        context = "".join(parts[:begin])
        pairs.append(Pair(Passage(context, "".join(ordered)), Passage(context, "".join(shuffled))))
    return pairs


@dataclass(frozen=True)
class _Named:
    """A story that names its character again in its second half."""

    words: frozenset[str]
    name: str
    context: str
    judged: str

    def renamed(self, name: str) -> Pair:
        """With the character's own name, or another."""
        wrong = re.sub(rf"\b{self.name}\b", name, self.judged)
        return Pair(Passage(self.context, self.judged), Passage(self.context, wrong))


def _name(stories: Sequence[str], seed: int) -> list[Pair]:
    """Two stories exchange their characters' names: neither name is more frequent."""
    pairs = []
    waiting: dict[tuple[str, ...], list[_Named]] = {GIRLS: [], BOYS: []}
    for story in stories:
        for kind, others in waiting.items():
            found = _named_again(story, kind)
            if found is None:
                continue
            for other in others:
                if other.name not in found.words and found.name not in other.words:
                    others.remove(other)
                    pairs += [found.renamed(other.name), other.renamed(found.name)]
                    break
            else:
                others.append(found)
            break
    return pairs


def _named_again(story: str, names: Sequence[str]) -> _Named | None:
    """The story from the sentence on that names its character again, after the middle."""
    name = _main_name(story, names)
    parts = sentences(story)
    middle = len(parts) // 2
    if name is None or name not in _WORD.findall("".join(parts[:middle])):
        return None
    for again in range(middle, len(parts)):
        judged = "".join(parts[again : again + 2])
        if name in _WORD.findall(parts[again]) and len(judged) <= _LONGEST - 20:
            words = frozenset(_WORD.findall(story))
            return _Named(words, name, "".join(parts[:again]), judged)
    return None


def _main_name(story: str, names: Sequence[str]) -> str | None:
    """The name of this kind that a story uses most, if it uses one at least twice."""
    words = _WORD.findall(story)
    count, name = max((words.count(name), name) for name in names)
    return name if count >= 2 else None


_IRREGULAR = {
    "is": "was", "are": "were", "has": "had", "says": "said", "sees": "saw", "goes": "went",
    "runs": "ran", "takes": "took", "gives": "gave", "feels": "felt", "finds": "found",
    "makes": "made", "gets": "got", "thinks": "thought", "comes": "came", "knows": "knew",
    "tells": "told", "sits": "sat",
}  # fmt: skip
_NUMBER = {"was": "were", "were": "was", "is": "are", "are": "is", "has": "have", "have": "has"}


def tenses(stories: Sequence[str]) -> dict[str, str]:
    """Verbs in the present and the past, he looks and he looked, each as the other's partner.

    Regular ones are those of which the stories contain look, looks and looked.
    """
    words = {word for story in stories for word in _WORD.findall(story)}
    found = dict(_IRREGULAR)
    for past in sorted(words):
        if not past.endswith("ed") or len(past) < 5:
            continue
        stem = past[:-2]
        bases = [stem, f"{stem}e"]
        bases += [stem[:-1]] if stem[-1] == stem[-2] else []
        bases += [f"{stem[:-1]}y"] if stem.endswith("i") else []
        for base in bases:
            present = f"{base[:-1]}ies" if base.endswith("y") else f"{base}s"
            for form in (present, f"{base}es"):
                if base in words and form in words:
                    found.setdefault(form, past)
    return found | {past: present for present, past in found.items()}


def _agreement(stories: Sequence[str], seed: int) -> list[Pair]:
    """Number and tense, each pair of forms after the same word equally often in both directions.

    "Tom and Sue was" begins like "Sue was": the preceding word alone does not decide.
    """
    kinds = []
    for swaps in (_NUMBER, tenses(stories)):
        uses = []
        for story in stories:
            words = list(_WORD.finditer(story))
            positions = [
                _Swap(words[n - 1].group().lower(), words[n], swaps[words[n].group()])
                for n in range(20, len(words))
                if words[n].group() in swaps and _is_narrated(story, words[n - 1], words[n])
            ]
            if positions:
                uses.append((story, _dice(seed, "agreement", story).choice(positions)))
        kinds.append(_balanced(uses))
    couples = [list(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in kinds]
    in_turns = itertools.chain.from_iterable(itertools.zip_longest(*couples))
    return [pair for couple in in_turns if couple for pair in couple]


def _is_narrated(story: str, before: re.Match[str], word: re.Match[str]) -> bool:
    """Whether a word follows another directly, and not in direct speech."""
    in_speech = story.count('"', 0, word.start()) % 2
    return not in_speech and story[before.end() : word.start()] == " "


def _pronoun(stories: Sequence[str], seed: int) -> list[Pair]:
    """He or she in the presence of a boy and a girl: the one named last is meant."""
    swaps = {"he": "she", "she": "he", "He": "She", "She": "He"}
    uses = []
    for story in stories:
        words = list(_WORD.finditer(story))
        named: list[str] = []
        positions = []
        for word in words:
            name = word.group()
            if name in GIRLS or name in BOYS:
                named.append(name)
            elif name in swaps and named:
                right, other = (GIRLS, BOYS) if name.lower() == "she" else (BOYS, GIRLS)
                if named[-1] in right and any(each in other for each in named):
                    positions.append(_Swap("", word, swaps[name]))
        if positions:
            uses.append((story, _dice(seed, "pronoun", story).choice(positions)))
    return _balanced(uses)


@dataclass(frozen=True)
class _Swap:
    """A word that can be replaced by another form."""

    context: str
    """The context that is balanced separately: the preceding word, or nothing."""
    word: re.Match[str]
    other: str


def _balanced(uses: Sequence[tuple[str, _Swap]]) -> list[Pair]:
    """Pairs in which each swap occurs equally often in both directions, next to its opposite."""
    found: defaultdict[tuple[str, str, str], list[Pair]] = defaultdict(list)
    for story, swap in uses:
        right, start = swap.word.group(), swap.word.start()
        context = story[:start].rstrip()
        space = story[len(context) : start]
        rest = sentences(story[start + len(right) :])
        end = rest[0] if rest else ""
        pair = Pair(
            Passage(context, space + right + end), Passage(context, space + swap.other + end)
        )
        if _fits(pair):  # else its opposite would stand alone
            found[swap.context, right, swap.other].append(pair)
    pairs = []
    for (context, right, other), there in found.items():
        back = found.get((context, other, right), []) if right < other else []
        for one, opposite in zip(there, back, strict=False):
            pairs += [one, opposite]
    return pairs


def _repetition(stories: Sequence[str], seed: int) -> list[Pair]:
    """The same sentence is judged after the original story, and after one with a repeated sentence.

    Not the repeated sentence itself: it is easy to predict, and the better the model, the easier.
    """
    pairs = []
    for story in stories:
        parts = sentences(story)
        if len(parts) < 5:
            continue
        position = _dice(seed, "repetition", story).randrange(2, len(parts) - 1)
        before, (last, now, coming) = "".join(parts[:position]), parts[position - 1 : position + 2]
        if last.strip() != now.strip():
            judged = f" {coming.strip()}"
            pairs.append(
                Pair(
                    Passage(f"{before} {now.strip()}", judged),
                    Passage(f"{before} {last.strip()}", judged),
                )
            )
    return pairs


Maker = Callable[[Sequence[str], int], list[Pair]]
FAMILIES: dict[str, tuple[Maker, str]] = {
    "ending": (_ending, "its own last two sentences, or another story's"),
    "order": (_order, "four sentences in their order, or shuffled"),
    "name": (_name, "the character's name in the second half, or another story's"),
    "agreement": (_agreement, "a verb in the right number and tense, or not: Tom and Sue was"),
    "pronoun": (_pronoun, "he or she for the child named last, where both are about"),
    "repetition": (
        _repetition,
        "the next sentence, after the last one or after a repetition in its place",
    ),
}
"""How each family is made, and what it tests."""
