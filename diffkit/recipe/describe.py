"""What a component is and may be told, for `diffkit show` and the reference pages."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..host import registry
from .effective import chosen_of
from .emit import inline
from .signature import REQUIRED, Parameter, component_parameters


def describe(kind: str, name: str) -> dict[str, Any]:
    """kind, name, plugin, summary, reference, doc, target, `options` (name, type, default), `injected`. Imports it."""
    found = registry().find(kind, name)
    cls = found.load()
    parameters = component_parameters(cls, kind)
    options = [p for p in parameters if p.role != "injected"]
    return {
        "kind": kind,
        "name": found.name,
        "plugin": found.plugin.label,
        "summary": found.entry.summary,
        "reference": found.entry.reference,
        "doc": inspect.getdoc(cls) or found.entry.summary,
        "target": found.entry.target,
        "options": [{"name": p.name, "type": type_text(p), "default": default_text(p)} for p in options],
        "injected": [p.target for p in parameters if p.role == "injected"],
    }


def type_text(parameter: Parameter) -> str:
    """The type of an option in words: `number > 0`, `one of small, large`, `list of whole numbers >= 1`."""
    if parameter.role == "component":
        return f"{parameter.target}{' or null' if parameter.optional else ''}"
    if parameter.role == "components":
        return f"list of {parameter.target}"
    return _text(parameter.annotation)


def default_text(parameter: Parameter) -> str:
    """The default as it would be written, or `required`."""
    if parameter.default is REQUIRED:
        return "required"
    if parameter.role == "component":
        chosen = chosen_of(parameter.default, parameter.target)
        return chosen.name if chosen else "null"
    if parameter.role == "components":
        return inline([one.name for one in (chosen_of(v, parameter.target) for v in parameter.default or ()) if one])
    return inline(parameter.default)


_WORDS = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null"}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}


def _text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([_text(args[0]), *_limits(args[1:])])
    if origin is Literal:
        return f"one of {', '.join(str(arg) for arg in args)}"
    if origin in (Union, types.UnionType):
        return " or ".join(_text(arg) for arg in args)
    if origin in (tuple, list):
        if len(args) == 2 and args[1] is ...:
            return f"list of {_text(args[0])}"
        return f"[{', '.join(_text(arg) for arg in args)}]"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(marks: tuple[Any, ...]) -> list[str]:
    """Constraints of a pydantic Field, or of annotated_types, which a Field keeps in `metadata`."""
    found = []
    for mark in marks:
        for limit in getattr(mark, "metadata", [mark]):
            found += [f"{sign} {getattr(limit, key):g}" for key, sign in _SIGNS.items() if hasattr(limit, key)]
    return found
