"""Which part of a row is the story."""

import pytest

from slm.data.columns import StoryText
from slm.errors import UserError

ROW = {"Context": "I am sad.", "Response": "Why?", "n": 3, "none": None, "list": [1]}


@pytest.mark.parametrize(
    ("spec", "story"),
    [
        ("Context", "I am sad."),
        ("none", ""),
        ("{Context}\n{Response}", "I am sad.\nWhy?"),
        (r"{Context}\n{Response}", "I am sad.\nWhy?"),
        ("Q: {Context} A: {Response}!", "Q: I am sad. A: Why?!"),
        ("{n} times {none}{{{Context}}}", "3 times {I am sad.}"),
    ],
)
def test_a_column_or_a_template_makes_the_story(spec, story):
    assert StoryText(spec).of(ROW, "here") == story


def test_a_template_names_each_column_once():
    assert StoryText("{b} {a} {b}").columns == ("b", "a")
    assert StoryText("text").columns == ("text",)


@pytest.mark.parametrize("spec", ["{Context", "Context}", "{} {Response}", "{{x}}"])
def test_a_malformed_template_is_explained(spec):
    with pytest.raises(UserError, match=r"--data\.text_column"):
        StoryText(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text", "here: there is no column 'text' among Context, Response, n, none, list"),
        ("{Context} {text}", "no column 'text'"),
        ("n", "column 'n' holds int"),
        ("{list}", "column 'list' holds list"),
    ],
)
def test_a_missing_or_other_column_is_explained(spec, message):
    with pytest.raises(UserError, match=message):
        StoryText(spec).of(ROW, "here")
