"""The known counts of TinyStories, and when a difference is said."""

from dataclasses import replace

import pytest

from slm.data.cleaning import Cleaning
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest, SplitFacts
from slm.data.tinystories import difference_from_known

RIGHT = {
    "train": SplitFacts(2_119_719, 473_992_236, 1, "x"),
    "validation": SplitFacts(21_990, 4_765_918, 1, "x"),
}
GPT2 = {"name": "gpt2", "n_vocab": 50257, "sha256": "x"}


def manifest(splits=RIGHT, tokenizer=GPT2, source="hub:roneneldan/TinyStories", **options):
    reading = Corpus(**options).reading | {"validation_share": None}
    return Manifest(source, "r", reading, tokenizer, splits)


def test_the_right_counts_are_passed_over_in_silence():
    assert difference_from_known(manifest()) == ""
    assert difference_from_known(manifest(validation_share=0.5)) == "", "it has its own split"


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", {"stories": 2_119_718}, "train split contains 2,119,718 stories, not the known"),
        ("validation", {"stories": 1}, "validation split contains 1 stories"),
        ("train", {"tokens": 471_872_517}, "471,872,517 tokens, not the known 473,992,236"),
        ("validation", {"tokens": 1}, "contains 1 tokens, not the known 4,765,918"),
    ],
)
def test_other_counts_are_said(split, change, message):
    splits = RIGHT | {split: replace(RIGHT[split], **change)}
    assert message in difference_from_known(manifest(splits))


def test_nothing_is_known_of_other_data_other_vocabularies_or_cleaned_stories():
    wrong = {split: replace(facts, tokens=1) for split, facts in RIGHT.items()}
    assert difference_from_known(manifest(wrong))
    own = {"name": "bpe", "n_vocab": 4096, "sha256": "x"}
    assert difference_from_known(manifest(wrong, tokenizer=own)) == ""
    assert difference_from_known(manifest(wrong, source="stories.txt")) == ""
    assert difference_from_known(manifest(wrong, clean=Cleaning(drop_empty=True))) == ""
