"""`--set path=value`."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from diffkit.errors import RecipeError
from diffkit.recipe.load import override
from diffkit.recipe.yaml import Node, parse

TEXT = "name: a\nschedule: {name: linear, steps: 10}\nparameterization: eps\nevaluate: [frechet, mmd]\nempty:\n"


def tree() -> Node:
    return parse(TEXT, "f.yaml")


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("name=b", "name", "b"),
        ("name=a=b=c", "name", "a=b=c"),
        ("schedule.steps=20", "schedule.steps", 20),
        ("schedule.steps= 20 ", "schedule.steps", 20),
        ("schedule.beta=1e-4", "schedule.beta", 1e-4),
        ("schedule=cosine", "schedule", "cosine"),
        ("schedule={name: cosine}", "schedule", {"name": "cosine"}),
        ("train.optimizer.betas=[0.9, 0.95]", "train", {"optimizer": {"betas": [0.9, 0.95]}}),
        ("parameterization.inner=x0", "parameterization", {"name": "eps", "inner": "x0"}),
        ("evaluate.1=classifier", "evaluate", ["frechet", "classifier"]),
        ("evaluate.0.p=2", "evaluate", [{"name": "frechet", "p": 2}, "mmd"]),
        ("empty.a=true", "empty", {"a": True}),
        ("name=", "name", None),
        ("name='#1'", "name", "#1"),
        ("name=a#1", "name", "a#1"),
        ("name='a # b'", "name", "a # b"),
    ],
)
def test_values_are_replaced(text: str, path: str, value: object) -> None:
    node = override(tree(), [text]).at(path)
    assert node is not None
    assert node.plain() == value


def test_the_tree_given_is_left_alone_and_later_ones_win() -> None:
    before = tree()
    after = override(before, ["name=b", "name=c"])
    assert (before.plain()["name"], after.plain()["name"]) == ("a", "c")  # type: ignore[index]


def test_marks_show_the_flag() -> None:
    node = override(tree(), ["train.steps=100"]).at("train.steps")
    assert node is not None
    assert node.key is not None
    assert (node.mark.file, node.mark.text, node.mark.path) == ("--set", "--set train.steps=100", "train.steps")
    assert node.mark.text[node.mark.column - 1 :] == "100"
    assert node.mark.text[node.key.column - 1 :].startswith("steps=")


REFUSED = ["name", "=1", "a..b=1", ".a=1", "name.x.=1", "name=[1", "name=a: b", "name=- 1", "name=# x", "name=a # b"]
REFUSED += ["evaluate.2=x", "evaluate.x=y", "schedule.steps.x=1", "name=.inf", "name=!!str 1", "name=&a 1"]
REFUSED += ["name={a: 1, a: 2}", "name=a\n---\nb", "name=" + "9" * 5000, "name=" + "[" * 100, "name=\0"]


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(tree(), [text])
    (fault,) = caught.value.errors
    assert fault.where is not None
    assert fault.where.file == "--set"


def test_all_that_cannot_be_read_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        override(tree(), ["name", "schedule.steps=5", "evaluate.9=x"])
    assert len(caught.value.errors) == 2


def told(text: str) -> str:
    """What comes of a text as a whole override, and as a value."""
    try:
        return repr(override(tree(), [text, f"name={text}"]).plain())
    except RecipeError as error:
        return error.render()


@given(st.text())
def test_any_text_is_applied_or_refused(text: str) -> None:
    """reliability.md row 22."""
    assert told(text)
