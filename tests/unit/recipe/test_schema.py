"""The JSON Schema: valid draft 7 with every installed component, and in agreement with the validator."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from diffkit import load_recipe
from diffkit.errors import RecipeError
from diffkit.host import registry
from diffkit.host.registry import _state
from diffkit.recipe.effective import effective
from diffkit.recipe.schema import DRAFT, json_schema
from diffkit.recipe.yaml import parse

pytestmark = pytest.mark.xdist_group("schema")

KEYWORDS = {
    *("$schema", "$ref", "title", "description", "default", "type", "enum", "const", "anyOf", "not", "items"),
    "properties",
    *("required", "additionalProperties", "definitions", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("not", "multipleOf", "minLength", "maxLength", "pattern", "minItems", "maxItems", "format"),
}
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
SHAPE_CODES = {"DK101", "DK102", "DK104", "DK105", "DK106"}


@pytest.fixture(scope="module")
def schema(standins: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "registry", standins)
        return json_schema()


def fits(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """Whether a value satisfies a schema of draft 7, of the keywords in use."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return fits(value, root["definitions"][schema["$ref"].removeprefix("#/definitions/")], root)
    return all(test(value, schema[keyword], schema, root) for keyword, test in TESTS.items() if keyword in schema)


def of_type(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        return is_number(value) and (name == "number" or isinstance(value, int))
    return isinstance(value, TYPES[name])


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def entries_fit(value: Any, known: dict[str, Any], root: dict[str, Any]) -> bool:
    return not isinstance(value, dict) or all(fits(value[key], known[key], root) for key in known if key in value)


def rest_fits(value: Any, rest: Any, known: Any, root: dict[str, Any]) -> bool:
    return not isinstance(value, dict) or all(fits(item, rest, root) for key, item in value.items() if key not in known)


def items_fit(value: Any, items: Any, root: dict[str, Any]) -> bool:
    if not isinstance(value, list):
        return True
    pairs = zip(value, items) if isinstance(items, list) else ((item, items) for item in value)
    return all(fits(item, one, root) for item, one in pairs)


def limit(compare: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    return lambda value, bound, schema, root: not is_number(value) or compare(value, bound)


def length(cls: type, compare: Callable[[int, int], bool]) -> Callable[..., bool]:
    return lambda value, bound, schema, root: not isinstance(value, cls) or compare(len(value), bound)


TESTS: dict[str, Callable[..., bool]] = {
    "type": lambda value, name, schema, root: of_type(value, name),
    "enum": lambda value, options, schema, root: value in options,
    "const": lambda value, only, schema, root: value == only,
    "anyOf": lambda value, options, schema, root: any(fits(value, one, root) for one in options),
    "not": lambda value, inner, schema, root: not fits(value, inner, root),
    "minimum": limit(operator.ge),
    "maximum": limit(operator.le),
    "exclusiveMinimum": limit(operator.gt),
    "exclusiveMaximum": limit(operator.lt),
    "multipleOf": limit(lambda value, base: value % base == 0),
    "minLength": length(str, operator.ge),
    "maxLength": length(str, operator.le),
    "minItems": length(list, operator.ge),
    "maxItems": length(list, operator.le),
    "pattern": lambda value, text, schema, root: not isinstance(value, str) or re.search(text, value) is not None,
    "required": lambda value, keys, schema, root: not isinstance(value, dict) or set(keys) <= set(value),
    "properties": lambda value, known, schema, root: entries_fit(value, known, root),
    "additionalProperties": lambda v, rest, schema, root: rest_fits(v, rest, schema.get("properties", {}), root),
    "items": lambda value, items, schema, root: items_fit(value, items, root),
}


def walk(schema: Any) -> Any:
    yield schema
    for key in ("properties", "definitions"):
        for below in schema.get(key, {}).values():
            yield from walk(below)
    for below in schema.get("anyOf", []):
        yield from walk(below)
    items = schema.get("items", [])
    for below in items if isinstance(items, list) else [items]:
        yield from walk(below)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"])


def test_it_is_draft_7(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == DRAFT
    for one in walk(schema):
        assert set(one) <= KEYWORDS, one
        if "$ref" in one:
            assert one["$ref"].removeprefix("#/definitions/") in schema["definitions"]


def test_every_component_is_in_it(schema: dict[str, Any]) -> None:
    broken = {"kwargs", "named", "unannotated", "own"}
    for found in registry().entries():
        assert (f"{found.kind}:{found.plugin.name}:{found.name}" in schema["definitions"]) is (found.name not in broken)


def test_effective_recipes_satisfy_it(schema: dict[str, Any], base: str) -> None:
    for sets in ([], ["parameterization=two-heads"], ["train.ema=[{name: a, power: 2}]", "evaluate=[mmd]"]):
        assert fits(effective(load_recipe(base, sets)), schema, schema)


CHOICES_TEXT = """
seed:
- 0
- 5
- -1
- 1.5
- '1'
- null
name:
- a
- a b
- 3
- xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
data:
- points
- pints
- {name: points, count: 3}
- {name: points, condition_dropout: 1}
- {count: 8}
- {name: points, box: [0, 1]}
- {name: points, box: [0]}
- {name: points, box: [0, 1, 2]}
- null
- {name: points, mode: odd, augment: shift}
- {name: points, fraction: 0.5, augment: [{name: shift, by: x}]}
codec:
- identity
- {name: identity}
- {name: identity, x: 1}
- null
schedule:
- linear
- ddpm/linear
- {name: linear, steps: 5}
- {name: linear, steps: 0}
- {steps: 5}
- 3
parameterization:
- eps
- standin/velocity
- {name: two-heads, inner: velocity}
- {name: two-heads, inner: 3}
network:
- tiny
- {name: tiny, width: 4}
- {name: tiny, width: -4}
- {name: tiny, act: tanh}
- {name: tiny, shape: 1}
objective:
- simple
- null
- {}
- {weighting: snr}
- {name: simple, times: {name: uniform}}
- {name: simple, timez: 1}
train:
- {steps: 1}
- {}
- null
- {steps: 1, ema: 0.9}
- {steps: 1, ema: 1.5}
- {steps: 1, clip: null}
- {steps: 1, ema: [{name: a, decay: 0.9}]}
- {steps: 1, ema: {power: x}}
- {steps: 1, optimizer: adamw}
- {steps: 1, optimizer: sgd}
- {steps: 1, optimizer: {betas: [0.9, 0.99]}}
- {steps: 1, schedule: cosine}
sample:
- {}
- null
- {sampler: ancestral}
- {sampler: {name: wrapper}}
- {sampler: wrapper}
- {steps: 3}
- {sampler: {name: wrapper, inner: shy}}
- {steps: 0}
- {guidance: clip}
- {labels: null}
- {grid: null}
- {guidance: [clip, {name: clip, low: -2}]}
evaluate:
- [mmd]
- mmd
- {metrics: [mmd, choosy]}
- {metrics: [{name: choosy, level: 10}]}
- null
- [{name: choosy, level: 3}]
- {metrics: [3]}
trackers:
- []
- null
- tensorbored
extra:
- 1
"""
CHOICES: dict[str, Any] = parse(CHOICES_TEXT, "choices").plain()  # type: ignore[assignment]
GOOD = {"name": "a", "data": "points", "schedule": "linear", "parameterization": "eps", "network": "tiny"}
EDITS = st.dictionaries(st.sampled_from(sorted(CHOICES)), st.integers(0, 11), max_size=3)
RECIPES = EDITS.map(
    lambda edits: (
        GOOD | {"train": {"steps": 1}} | {key: CHOICES[key][i % len(CHOICES[key])] for key, i in edits.items()}
    )
)


@given(recipe=RECIPES, drop=st.none() | st.sampled_from(["name", "data", "train", "schedule"]))
def test_it_agrees_with_the_validator(schema: dict[str, Any], recipe: dict[str, Any], drop: str | None) -> None:
    """A recipe that the schema accepts has no fault of form, and one that it refuses has one."""
    recipe = {key: value for key, value in recipe.items() if key != drop}
    try:
        load_recipe(recipe)
        codes: set[str] = set()
    except RecipeError as error:
        codes = {fault.code for fault in error.errors}
    assert fits(recipe, schema, schema) is not bool(codes & SHAPE_CODES), (recipe, codes)
