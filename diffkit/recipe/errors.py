"""The errors of a recipe, each with its place; errors of pydantic in plain words; suggestions for misspelled words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from ..config import NAME, ComponentSpec
from ..errors import Mark, PluginError, RecipeError, ResourceError
from .yaml import Node, parse

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
    """Return the error for an unknown key, with a guess.

    Args:
        mark: the place of the key.
        key: the key.
        here: the valid keys of the section.
        elsewhere: paths of the valid keys of other sections, by name.

    Returns:
        The error, and the path of the key that was probably meant, or None.
    """
    guess = meant(key, here, elsewhere)
    place = mark.path.rpartition(".")[0]
    message = f"unknown key {quote(key)}" + (f" in {place}" if place else "")
    hint, fix = did_you_mean(guess), None if guess else "remove it"
    if guess == key:
        hint = f"{quote(key)} is a key of the recipe itself, at its left edge"
    fault = RecipeError(message, code="DK104", where=mark, hint=hint, choices=sorted(here), fix=fix)
    return fault, f"{place}.{guess}".lstrip(".") if guess in here else guess


def of_another_task(mark: Mark, key: str, task: str, here: Sequence[str], others: Sequence[str]) -> RecipeError:
    """Return the error for a key that recipes of another task have.

    Args:
        mark: the place of the key.
        key: the key.
        task: the task of the recipe.
        here: the keys of this task.
        others: the tasks that have the key.

    Returns:
        Error DK104.
    """
    message = f"{key}: a {task} recipe has no {key}"
    return RecipeError(message, code="DK104", where=mark, choices=here, fix=f"remove it, or set task: {others[0]}")


def missing(mark: Mark, path: str, what: str, choices: Sequence[str] = ()) -> RecipeError:
    """Return the error for a required key.

    Args:
        mark: the place of the section.
        path: the path of the key.
        what: an example of its value, for the fix.
        choices: the allowed values.

    Returns:
        Error DK105.
    """
    message = f"{path} is missing"
    return RecipeError(message, code="DK105", where=mark, choices=choices, fix=f"add {path.rpartition('.')[2]}: {what}")


def wrong(node: Node, expected: str, *, hint: str | None = None, choices: str | Sequence[str] = ()) -> RecipeError:
    """Return the error for a value of the wrong type or out of range.

    Args:
        node: the value.
        expected: the type or range in words.
        hint: a guess, or None.
        choices: the allowed values.

    Returns:
        Error DK106.
    """
    path = node.mark.path or "the recipe"
    message = f"{path} must be {expected}, not {quote(node.plain())}"
    return RecipeError(message, code="DK106", where=node.mark, hint=hint, choices=choices)


def injected(key: str, mark: Mark) -> RecipeError:
    """Return the error for an option that is taken from the rest of the recipe."""
    message = f"{key} is taken from the recipe and cannot be set here"
    return RecipeError(message, code="DK104", where=mark, fix=f"remove it; set {key} itself")


def not_read(path: str, component: str, mark: Mark) -> RecipeError:
    """Return the error for an extra component of a section, if the main component of the section does not use it.

    Args:
        path: the path of the component.
        component: the main component in words.
        mark: the place.

    Returns:
        Error DK117.
    """
    return RecipeError(f"{component} does not read {path}", code="DK117", where=mark, fix="remove it")


def refused_options(spec: ComponentSpec, error: ValueError | OverflowError) -> RecipeError:
    """Return the error for options that the constructor of a component refused with ValueError, or that are too large
    for it.
    """
    return RecipeError(f"{spec.kind} {spec.name}: {error}", code="DK107")


def too_large(spec: ComponentSpec, error: BaseException) -> ResourceError:
    """Return the error for a component that needs more memory than there is."""
    notes = str(error).splitlines()[:1]
    message, fix = f"memory ran out in the construction of {spec.kind} {spec.name}", "use smaller options"
    return ResourceError(message, code="DK401", fix=fix, notes=notes)


def cannot_build(spec: ComponentSpec, error: BaseException) -> PluginError:
    """Return the error for a constructor of a component that raised another exception than ValueError."""
    message = f"{spec.kind} {spec.name} failed: {type(error).__name__}: {error}".splitlines()[0]
    fix = "report it to the author of the component; a constructor refuses options with ValueError"
    return PluginError(message, code="DK252", fix=fix)


def no_condition(name: str, present: Iterable[str]) -> RecipeError:
    """Return the error for a condition that the data does not have.

    Args:
        name: the condition.
        present: the conditions of the data.

    Returns:
        Error DK115.
    """
    names = list(present)
    hint = did_you_mean(nearest(name, names))
    fix = "remove it, or choose data with it" if not hint else None
    return RecipeError(f"the data has no condition {quote(name)}", code="DK115", choices=names, hint=hint, fix=fix)


def no_conditioner(name: str) -> RecipeError:
    """Return the error for a text of the data that has no conditioner."""
    message = f"the data has the text condition {quote(name)}, which reaches a network only through a conditioner"
    return RecipeError(message, code="DK115", fix=f"conditions: {{{name}: text}}, or conditions: {{}} for none")


def unavailable(spec: ComponentSpec, kind: str, before: Sequence[str]) -> PluginError:
    """Return the error for a component that requires a component of a kind that is not built before it.

    Args:
        spec: the component.
        kind: the required kind.
        before: the kinds that are built before.

    Returns:
        Error DK251.
    """
    message = f"{spec.kind} {spec.name} requires a `{kind}`, but none is built before it"
    fix = "in the constructor, give the parameter a default, or require a component that is built before"
    return PluginError(message, code="DK251", choices=before, fix=fix)


def from_pydantic(node: Node, errors: Iterable[Any]) -> list[RecipeError]:
    """Convert a pydantic error to recipe errors, one for each place; the branches of a union share one error.

    An error of a list or mapping is left out if there is one of a value in it.
    """
    places: dict[str, tuple[Node, list[Any]]] = {}
    for error in errors:
        at = _walk(node, error["loc"])
        places.setdefault(at.mark.path, (at, []))[1].append(error)
    outer = {path for path in places if any(other.startswith(f"{path}.") for other in places)}
    return [_fault(at, told) for path, (at, told) in places.items() if path not in outer]


def _walk(node: Node, loc: Sequence[str | int]) -> Node:
    """Return the node at `loc`; steps that are names of union branches are skipped."""
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
        return did_you_mean(nearest_value(value, literals))
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
    """Return a hint if a text looks like a number, such as "1,000" or "50k"."""
    bare = text.strip().replace("_", "").replace(",", "").replace(" ", "")
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmM])", bare):
        return f"did you mean {float(match[1]) * (1e6 if match[2] in 'mM' else 1e3):.0f}?"
    try:
        float(bare)
    except ValueError:
        return None
    return f"did you mean {bare}, without quotes?" if bare == text else f"did you mean {bare}?"


@cache
def _synonyms(of: Literal["keys", "values"]) -> Mapping[str, Sequence[str]]:
    """Return, by the word of another tool, the keys or values of recipes with that meaning, the likely one first."""
    table: Any = parse((files(__package__) / "synonyms.yaml").read_text("utf-8"), "synonyms.yaml").plain()
    found: dict[str, list[str]] = {}
    for name, words in table[of].items():
        for word in words.split():
            found.setdefault(word, []).append(name)
    return found


def means_name(key: str) -> bool:
    """Return whether other tools name a component by `key`."""
    return "name" in _synonyms("keys").get(key, ())


def nearest_value(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is probably meant: a synonym, or the most similar one."""
    choices = tuple(choices)
    synonyms = (value for value in _synonyms("values").get(_form(word), ()) if value in choices)
    return next(synonyms, None) or nearest(word, choices)


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that is most similar to `word`.

    Args:
        word: the misspelled word.
        choices: the valid words.
        cutoff: the smallest similarity, in [0, 1].

    Returns:
        The choice; None if no choice is close.
    """
    by_form = {_form(choice): choice for choice in choices}
    found = difflib.get_close_matches(_form(word), by_form, n=1, cutoff=cutoff)
    return by_form[found[0]] if found else None


def meant(key: str, here: Iterable[str], elsewhere: dict[str, str]) -> str | None:
    """Guess the valid name for an unknown key: a name of this section, or the path of a name in another section.

    `elsewhere` maps valid names to their paths. The same word in another spelling comes first, then the same name in
    another section, a near certain slip, synonyms, and last whatever is close.

    Args:
        key: the unknown key.
        here: the valid keys of the section.
        elsewhere: paths of the valid keys of other sections, by name.

    Returns:
        The name or path; None without a guess.
    """
    here, synonyms = tuple(here), _synonyms("keys").get(_form(key), ())
    return (
        nearest(key, here, 0.99)
        or elsewhere.get(key)
        or nearest(key, here, 0.8)
        or next((synonym for synonym in synonyms if synonym in here), None)
        or next((elsewhere[synonym] for synonym in synonyms if synonym in elsewhere), None)
        or nearest(key, here)
        or elsewhere.get(nearest(key, elsewhere, 0.8) or "")
    )


def did_you_mean(guess: str | None) -> str | None:
    """Return the hint "did you mean ...?"; None if there is no guess."""
    return f'did you mean "{guess}"?' if guess else None


def quote(value: object) -> str:
    """Format a value for a terminal: of limited length, and without control characters."""
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return f'"{text}"' if text.isprintable() else ascii(text)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "a mapping"
    return repr(value)


def _form(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")
