"""What can be named, and what a recipe names, without importing torch or any component."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..config import Config
from ..errors import DiffkitError, Mark
from ..host import Registered, registry
from .effective import chosen_of, inline
from .load import Source, read
from .signature import REQUIRED, Parameter, component_parameters, section_parameters
from .spec import Spec
from .yaml import Node

_NOWHERE = Mark("", 1)


def entries(kind: str | None = None) -> tuple[Registered, ...]:
    """The installed components, of one kind or of all: each has `kind`, `name`, `plugin`, `entry` and `load()`.

    Raises PluginError for an unknown kind.
    """
    return registry().entries(kind)


def named(source: Source, overrides: Iterable[str] = ()) -> tuple[tuple[str, Registered], ...]:
    """(path, component) for each component that the sections of a recipe name, defaults included, in order.

    Names that do not resolve are left out; components nested in options of others are not looked for.
    """
    _, root = read(source, overrides)
    found = []
    for path, kind, name in _named(Spec, root, ""):
        try:
            found.append((path, registry().find(kind, name)))
        except DiffkitError:
            continue  # `validate` is who complains
    return tuple(found)


def _named(cls: type[Config], node: Node, path: str) -> Iterator[tuple[str, str, str]]:
    parameters = section_parameters(cls)
    owner = any(p.name == "component" for p in parameters)
    below = node.entries("name" if owner else cls.shorthand) or {}
    for parameter in parameters:
        here = parameter.name == "component"
        at = path if here else f"{path}.{parameter.name}".lstrip(".")
        child = node if here else below.get(parameter.name)
        yield from _named_in(parameter, child, at)


def _named_in(parameter: Parameter, node: Node | None, path: str) -> Iterator[tuple[str, str, str]]:
    if parameter.role == "component":
        name = (node.entries("name") or {}).get("name") if node is not None else None
        word = name.value if name is not None else parameter.default
        if isinstance(word, str):
            yield path, parameter.target, word
    elif parameter.role == "section":
        yield from _named(parameter.target, node or Node({}, _NOWHERE), path)
    elif parameter.role == "components" and node is not None and node.value is not None:
        items = node.value if isinstance(node.value, list) else [node]
        for index, item in enumerate(items):
            one = Parameter(parameter.name, None, None, "component", parameter.target)
            yield from _named_in(one, item, f"{path}.{index}" if isinstance(node.value, list) else path)


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
