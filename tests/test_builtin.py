"""Properties of the built-in stories."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from slm.data.builtin import stories
from slm.data.builtin.plots import PLOTS
from slm.data.builtin.plots.scene import Tale
from slm.data.builtin.stories import tales

COUNT = 20_000
ROOT = Path(__file__).resolve().parents[1]
HE_WORDS = {"he", "him", "his", "himself"}
SHE_WORDS = {"she", "her", "hers", "herself"}


@pytest.fixture(scope="module")
def told() -> list[tuple[str, Tale]]:
    return list(tales(COUNT))


@pytest.fixture(scope="module")
def texts(told: list[tuple[str, Tale]]) -> list[str]:
    return [tale.text for _, tale in told]


def offenders(pattern: str, texts: list[str]) -> list[str]:
    """The places where a pattern that must not occur does occur."""
    found = (m for text in texts for m in re.finditer(pattern, text))
    return [m.string[max(0, m.start() - 20) : m.end() + 20] for m in islice(found, 5)]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_stories_are_distinct(texts: list[str]) -> None:
    assert len(texts) == COUNT
    assert len(set(texts)) == COUNT


def test_fewer_stories_are_a_prefix_of_more(texts: list[str]) -> None:
    assert list(stories(10)) == texts[:10]
    assert list(stories(0)) == []


def test_stories_depend_on_the_seed() -> None:
    assert list(stories(20, seed=1)) == list(stories(20, seed=1))
    assert not set(stories(20, seed=1)) & set(stories(20, seed=2))


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_stories_are_the_same_in_every_process(hash_seed: str) -> None:
    script = (
        "import hashlib, random; random.seed(); from slm.data.builtin import stories; "
        "print(hashlib.sha256('\\n\\n'.join(stories(500, 7)).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = hashlib.sha256("\n\n".join(stories(500, 7)).encode()).hexdigest()
    assert done.stdout.strip() == here


def test_vocabulary_is_rich_and_learnable(texts: list[str]) -> None:
    seen = Counter(word for text in texts for word in words_of(text))
    assert len(seen) >= 800
    rare = {word for word, times in seen.items() if times < 10}
    assert not rare


def test_every_plot_is_told_about_equally_often(told: list[tuple[str, Tale]]) -> None:
    share = Counter(name for name, _ in told)
    assert len(PLOTS) >= 12
    assert set(share) == {plot.__name__ for plot in PLOTS}
    assert min(share.values()) > 0.8 * COUNT / len(PLOTS)
    assert max(share.values()) < 1.2 * COUNT / len(PLOTS)


def test_shape_of_a_story(texts: list[str]) -> None:
    for text in texts:
        assert 3 <= len(text.split("\n")) <= 5, text
        assert 90 <= len(text.split()) <= 190, text
        assert all(line and line == line.strip() for line in text.split("\n")), text


def test_many_stories_begin_once_upon_a_time(texts: list[str]) -> None:
    begun = sum(text.startswith("Once upon a time") for text in texts)
    assert 0.5 < begun / COUNT < 0.9


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("a character outside ASCII", r"[^\x20-\x7e\n]"),
        ("a placeholder", r"[{}<>_\[\]]|\bNone\b"),
        ("two spaces", r"  "),
        ("a space before a mark", r" [,.!?;:]"),
        ("doubled marks", r"[,.!?;:]{2}|\"\""),
        ("a mark without a space after it", r"[,.!?;:][A-Za-z]"),
        ("a doubled word", r"(?i:\b(\w+) \1\b)"),
        ("a before a vowel", r"\b[Aa] [aeiou]"),
        ("an before a consonant", r"\b[Aa]n [^aeiou]"),
        ("a sentence without a capital", r"(?:^|[.] |[.]\" )\"?[a-z]"),
        ("speech without a capital", r"(?:^| )\"(?!even if)[a-z]"),
        ("a name in lower case", r"\b(?:mom|dad|grandma) (?:said|asked)\b"),
        ("two speakers without a word between", r"[.!?]\" \""),
    ],
)
def test_no_story_has(fault: str, pattern: str, texts: list[str]) -> None:
    assert offenders(f"(?m){pattern}", texts) == [], fault


def test_paragraphs_are_closed(texts: list[str]) -> None:
    for text in texts:
        for line in text.split("\n"):
            assert line.count('"') % 2 == 0, line
            assert re.search(r"[.!?]\"?$", line), line


def test_every_story_has_dialogue(texts: list[str]) -> None:
    assert all(text.count('"') >= 4 for text in texts)


def test_pronouns_suit_the_cast(told: list[tuple[str, Tale]]) -> None:
    one_gender = Counter[str]()
    for _, tale in told:
        genders = {character.he for character in tale.cast}
        used = set(words_of(tale.text))
        if "she" not in genders:
            assert not used & SHE_WORDS, tale.text
        if "he" not in genders:
            assert not used & HE_WORDS, tale.text
        if len(genders) == 1:
            one_gender.update(genders)
    assert min(one_gender["he"], one_gender["she"]) > 1_000


def test_characters_are_introduced_and_come_back(told: list[tuple[str, Tale]]) -> None:
    for _, tale in told:
        names = [character.name for character in tale.cast]
        assert 1 <= len(names) <= 3
        assert len(set(names)) == len(names), tale.text
        for name in names:
            assert len(re.findall(rf"(?i)\b{name}\b", tale.text)) >= 2, (name, tale.text)
        assert len(re.findall(rf"\b{names[0]}\b", tale.text)) >= 3, tale.text
        assert names[0] in tale.paragraphs[0]
        assert any(names[0] in paragraph for paragraph in tale.paragraphs[1:])


def test_the_global_random_state_is_left_alone() -> None:
    import random

    random.seed(3)
    list(stories(50))
    assert random.random() == Random(3).random()
