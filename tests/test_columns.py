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


@pytest.mark.parametrize(
    "spec",
    ["{Context", "Context}", "{} {Response}", "{{x}}", "{title: en}", "{a!r}", "{a:>9} {b}"],
)
def test_a_malformed_template_is_explained(spec):
    with pytest.raises(UserError, match=r"--data\.text_column"):
        StoryText(spec)


def test_a_template_is_filled_as_far_as_a_row_goes():
    assert StoryText("{Context} {Answer}").of(ROW, "here") == "I am sad. "
    with pytest.raises(UserError, match="no column 'Question'"):
        StoryText("{Question} {Answer}").of(ROW, "here")


@pytest.mark.parametrize(
    ("spec", "present", "remedy"),
    [
        ("txt", ["id", "text"], "--data.text_column 'text'"),
        (r"{Context}\n{Respones}", ["Context", "Response"], r"'{Context}\n{Response}'"),
        ("text", ["id;text"], "with commas in between"),
    ],
)
def test_the_remedy_names_the_column_that_was_meant(spec, present, remedy):
    with pytest.raises(UserError) as error:
        StoryText(spec).check(present, "here")
    assert remedy in error.value.remedy


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text", "here: there is no column 'text' among Context, Response, n, none, list"),
        ("{story} {text}", "no column 'story'"),
        ("n", "column 'n' contains int"),
        ("{list}", "column 'list' contains list"),
    ],
)
def test_a_missing_or_other_column_is_explained(spec, message):
    with pytest.raises(UserError, match=message):
        StoryText(spec).of(ROW, "here")


def test_a_column_that_occurs_twice_is_refused():
    with pytest.raises(UserError, match=r"a\.csv: 2 columns are called 'b'"):
        StoryText("{a} {b}").check(["a", "b", "b"], "a.csv")
    StoryText("a").check(["a", "b", "b"], "a.csv")
