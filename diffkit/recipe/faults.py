"""The faults of a recipe, each with its place; pydantic's complaints in the words of the house."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import Mark, RecipeError
from .spec import NAME
from .tree import Node
from .words import meant, nearest_value, quote

EXPECTED = {
    "float": "a number",
    "int": "a whole number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "none_required": "nothing (null)",
}
LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
NAMES = "a name of letters, digits, dots, dashes and underscores, at most 64, the first a letter or digit"
YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def unknown_key(mark: Mark, key: str, here: Sequence[str], elsewhere: dict[str, str]) -> tuple[RecipeError, str | None]:
    """A key that nothing reads, and the path of the one that was meant, where there is one."""
    guess = meant(key, here, elsewhere)
    hint = f'did you mean "{guess}"?' if guess else None
    place = mark.path.rpartition(".")[0]
    fault = RecipeError(
        f"unknown key {quote(key)}" + (f" in {place}" if place else ""),
        code="DK104",
        where=mark,
        hint=hint,
        choices=sorted(here),
        fix=None if guess else "remove it",
    )
    return fault, f"{place}.{guess}".lstrip(".") if guess in here else guess


def missing(mark: Mark, path: str, what: str, choices: Sequence[str] = ()) -> RecipeError:
    """A key that must be given."""
    return RecipeError(
        f"{path} is missing", code="DK105", where=mark, choices=choices, fix=f"add {path.rpartition('.')[2]}: {what}"
    )


def wrong(node: Node, expected: str, *, hint: str | None = None, choices: str | Sequence[str] = ()) -> RecipeError:
    """A value of the wrong type or out of range."""
    path = node.mark.path or "the recipe"
    return RecipeError(
        f"{path} must be {expected}, not {quote(node.plain())}",
        code="DK106",
        where=node.mark,
        hint=hint,
        choices=choices,
    )


def from_pydantic(node: Node, errors: Iterable[Any]) -> list[RecipeError]:
    """One fault for each place where a value failed; the branches of a union are told as alternatives."""
    places: dict[int, tuple[Node, list[Any]]] = {}
    for error in errors:
        at = _walk(node, error["loc"])
        places.setdefault(id(at), (at, []))[1].append(error)
    return [_fault(at, told) for at, told in places.values()]


def _walk(node: Node, loc: Sequence[str | int]) -> Node:
    """The node that `loc` leads to; steps that are names of union branches lead nowhere and are passed over."""
    for step in loc:
        node = node.child(step) or node
    return node


def _fault(node: Node, errors: list[Any]) -> RecipeError:
    value = node.plain()
    literals = [word for error in errors for word in _literals(error)]
    expected = " or ".join(dict.fromkeys(_expected(error) for error in errors))
    hint = _hint(value, errors, literals)
    if literals and all(_literals(error) for error in errors):
        told = f"{node.mark.path} cannot be {quote(value)}"
        return RecipeError(told, code="DK106", where=node.mark, hint=hint, choices=literals)
    return wrong(node, expected, hint=hint, choices=literals if len(literals) > 1 else ())


def _literals(error: Any) -> list[str]:
    if error["type"] not in ("literal_error", "enum"):
        return []
    return re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))


def _expected(error: Any) -> str:
    kind, ctx = str(error["type"]), error.get("ctx", {})
    if kind in LIMITS:
        name, sign = LIMITS[kind]
        return f"{sign} {ctx[name]:g}" if isinstance(ctx[name], float) else f"{sign} {ctx[name]}"
    if kind in ("literal_error", "enum"):
        literals = _literals(error)
        return literals[0] if len(literals) == 1 else f"one of {', '.join(literals)}"
    if kind in ("too_short", "too_long"):
        bound = ctx.get("min_length") if kind == "too_short" else ctx.get("max_length")
        return f"a list of at {'least' if kind == 'too_short' else 'most'} {bound}"
    if kind == "missing":
        return "a longer list"
    if kind == "unexpected_positional_argument":
        return "a shorter list"
    if kind == "string_pattern_mismatch":
        return NAMES if ctx["pattern"] == NAME else f"a text like {ctx['pattern'].strip('^$')}"
    if kind == "finite_number":
        return "a finite number"
    base = re.sub(r"_(type|parsing|from_float)(_size)?$", "", kind)
    return EXPECTED.get(base, _sentence(str(error["msg"])))


def _sentence(message: str) -> str:
    return re.sub(r"^(Input should be|Value error,) ?", "", message)


def _hint(value: object, errors: list[Any], literals: list[str]) -> str | None:
    kinds = {str(error["type"]) for error in errors}
    if value is None:
        return "write a value, or remove the key"
    if isinstance(value, str) and "bool_type" in kinds and value.lower() in YES_NO:
        return f"did you mean {YES_NO[value.lower()]}?"
    if isinstance(value, str) and literals:
        guess = nearest_value(value, literals)
        return f'did you mean "{guess}"?' if guess else None
    if isinstance(value, str) and kinds & {"float_type", "int_type"}:
        return _number_hint(value)
    if isinstance(value, float) and kinds & {"int_type", "int_from_float"} and value.is_integer():
        return f"did you mean {int(value)}?"
    if isinstance(value, bool) and kinds & {"float_type", "int_type"}:
        return "write a number"
    if isinstance(value, int | float | str) and kinds & {"tuple_type", "list_type"}:
        return f"did you mean [{value}]?"
    return None


def _number_hint(text: str) -> str | None:
    """What number a text was probably meant to be."""
    bare = text.strip().replace("_", "").replace(",", "").replace(" ", "")
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmM])", bare):
        return f"did you mean {float(match[1]) * (1e6 if match[2] in 'mM' else 1e3):.0f}?"
    try:
        float(bare)
    except ValueError:
        return None
    return f"did you mean {bare}, without quotes?" if bare == text else f"did you mean {bare}?"
