"""The strict reader: YAML 1.2 scalars, everything that could become code or a bomb refused, a place for all values."""

from __future__ import annotations

import json
import math
import time

import pytest
import yaml
from hypothesis import example, given, strategies as st

from diffkit.errors import RecipeError
from diffkit.recipe import yaml as module
from diffkit.recipe.yaml import MAX_DEPTH, is_plain, parse, resolve


def plain(text: str) -> object:
    return parse(text, "f.yaml").plain()


def refused(text: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse(text, "f.yaml")
    assert caught.value.errors
    for error in caught.value.errors:
        assert error.where is not None
        assert error.render()
    return caught.value


def outcome(text: str) -> str:
    """The value of a text, or the message that refuses it."""
    try:
        return repr(parse(text, "f.yaml").plain())
    except RecipeError as error:
        return error.render()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5E+3", -1500.0),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-12", -12),
        ("+3", 3),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("0b11", "0b11"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("١٢", "١٢"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(word: str, value: object) -> None:
    """The traps of PyYAML: 1e-4 as text, `on` as true, 017 as fifteen, 12:30:45 as a number."""
    found = plain(f"a: {word}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize(
    "word", [".inf", "-.inf", ".nan", "1e999", "1" * 5000, "9" * 19, "0x" + "f" * 17, "1." + "0" * 300]
)
def test_numbers_that_no_recipe_holds(word: str) -> None:
    assert refused(f"a: {word}").errors[0].code == "DK101"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "given twice, first on line 1"),
        ("a: !!python/object/apply:os.system [ls]", "cannot contain tags"),
        ("a: !foo 1", "cannot contain tags"),
        ("a: ! 1", "cannot contain tags"),
        ("a: &x 1", "cannot contain anchors"),
        ("a: *x", "cannot contain aliases"),
        ("<<: {a: 1}", "cannot contain merge keys"),
        ("1: 2", "a key must be text"),
        ("~: 2", "a key must be text"),
        ("? [a]\n: 1", "a key must be a word"),
        ("a: 1\n---\nb: 2", "one YAML document"),
        ("a\0: 1", "NUL"),
        ("a: \x1b[31m", "not YAML"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
        ("[" * 5000, "levels deep"),
        ("a: [1, 2", "not YAML"),
        ("a: b: c", "not YAML"),
        ("\ta: 1", "not YAML"),
        ("a: '\ud800'", "not YAML"),
        ("a: " + "x" * (module.MAX_BYTES + 1), "larger than"),
        ('a: "\\ud800"', "not YAML"),
    ],
    ids=range(21),
)
def test_refused(text: str, said: str) -> None:
    """reliability.md rows 22 and 23."""
    if len(text) > module.MAX_BYTES:
        with pytest.raises(RecipeError, match=said):
            parse(text, "f.yaml")
    else:
        assert said in refused(text).errors[0].message


def test_all_faults_of_a_text_are_told_at_once() -> None:
    error = refused("a: 1\na: 2\nb: !x 1\nc: &y 1\n<<: {}\n")
    assert [fault.where.line for fault in error.errors if fault.where] == [2, 3, 4, 5]


def test_the_number_of_faults_is_bounded() -> None:
    assert len(refused("a: 1\n" * 10_000).errors) == module.MAX_FAULTS


def test_an_alias_bomb_is_refused_at_once() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    start = time.monotonic()
    refused("\n".join(rows))
    assert time.monotonic() - start < 1.0


def test_the_depth_allowed_is_read() -> None:
    text = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert plain(text) == json.loads(text)


def test_every_key_and_value_has_a_place() -> None:
    root = parse("a: 1\nb:\n  - x\n  - {c: 2.5}\n", "f.yaml")
    node = root.at("b.1.c")
    assert node is not None
    assert node.key is not None
    assert (node.mark.file, node.mark.line, node.mark.column, node.mark.path) == ("f.yaml", 4, 9, "b.1.c")
    assert (node.mark.text, node.mark.width) == ("  - {c: 2.5}", 3)
    assert (node.key.line, node.key.column) == (4, 6)


def test_a_long_line_is_cut() -> None:
    near = parse("a: 1\nb: [1, " + "2, " * 200 + "3]\n", "f.yaml").at("b.0")
    far = parse("b: [" + "2, " * 200 + "3]\n", "f.yaml").at("b.200")
    assert near is not None
    assert near.mark.text.endswith(" ...")
    assert far is not None
    assert far.mark.text == ""


def test_an_empty_text_is_nothing() -> None:
    assert plain("") is None
    assert plain("# only a comment\n") is None


@given(st.text())
@example("\x85a: 1")
@example("a: \u2028b\n*")
@example("%YAML 9.9\n---\n")
@example("\ufeffa: 1")
@example("- \t-")
def test_any_text_is_read_or_refused(text: str) -> None:
    """reliability.md row 22: only RecipeErrors with a place, never a traceback."""
    assert outcome(text)


PIECES = ["a", "b:", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "#", "&x", "*x", "!t", "'", '"', "|", ">", "1e-4"]
PIECES += ["<<: ", "---", "...", "%", "? ", "\t", "0x", ".inf", "\\u12", "@", "`", "null", "1" * 70, "\r"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_mixture_of_syntax_is_read_or_refused(text: str) -> None:
    assert outcome(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_as_itself(value: object) -> None:
    found = plain(json.dumps(value))
    assert found == value
    assert json.dumps(found) == json.dumps(value)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_a_word_that_may_stand_plain_is_read_as_that_word(word: str) -> None:
    if is_plain(word):
        assert plain(f"a: {word}\nb: [{word}]") == {"a": word, "b": [word]}
        assert yaml.safe_load(f"'{word}'") == word


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_back_exactly(number: float) -> None:
    found = resolve(repr(number))
    assert found == number
    assert math.copysign(1.0, found) == math.copysign(1.0, number)  # type: ignore[arg-type]
