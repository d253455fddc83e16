"""The components that are registered, and those that a recipe names, listed without importing torch."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..config import Config
from ..errors import DiffkitError
from ..host import Registered, registry
from .effective import chosen_of, inline
from .load import Source, read
from .signature import REQUIRED, Parameter, component_parameters, fields_of
from .spec import recipe_class
from .yaml import Node, join


def entries(kind: str | None = None) -> tuple[Registered, ...]:
    """Return the installed components, of one kind or of all: each has `kind`, `name`, `plugin`, `entry` and `load()`.

    Raises PluginError for an unknown kind.
    """
    return registry().entries(kind)


def named(source: Source, overrides: Iterable[str] = ()) -> tuple[tuple[str, Registered], ...]:
    """List the components that a recipe names, without importing any of them.

    Args:
        source: as for `load_recipe`.
        overrides: texts `path=value`, applied in turn.

    Returns:
        (path, component), defaults of sections included, in the order of the sections. A component in an option of
        another is found if the option has the name of its kind; names that do not resolve are left out.

    Raises:
        RecipeError: if the recipe cannot be read.
    """
    _, root = read(source, overrides)
    found = []
    for path, kind, name in _in_section(recipe_class(root), root, ""):
        with contextlib.suppress(DiffkitError):
            found.append((path, registry().find(kind, name)))
    return tuple(found)


def _in_section(cls: type[Config], node: Node | None, path: str) -> Iterator[tuple[str, str, str]]:
    fields = list(fields_of(cls, node))
    names = [parameter.name for parameter, _ in fields]
    for parameter, below in fields:
        at = path if parameter.name == "component" else join(path, parameter.name)
        if parameter.role == "component":
            shared = names if parameter.name == "component" else ()
            yield from _in_component(parameter.target, below, at, parameter.default, shared)
        elif parameter.role == "components" and below is not None:
            for index, item in enumerate(below.items()):
                yield from _in_component(parameter.target, item, f"{at}.{index}")
        elif parameter.role == "named components" and below is not None and isinstance(below.value, dict):
            for key, item in below.value.items():
                yield from _in_component(parameter.target, item, join(at, key))
        elif parameter.role == "section":
            yield from _in_section(parameter.target, below, at)


def _in_component(
    kind: str, node: Node | None, path: str, default: object = None, skip: Sequence[str] = ()
) -> Iterator[tuple[str, str, str]]:
    entries = (node.entries("name") if node is not None else None) or {}
    name = entries["name"].value if "name" in entries else default
    if isinstance(name, str):
        yield path, kind, name
    for key in entries:
        if key in registry().kinds and key not in skip:
            yield from _in_component(key, entries[key], join(path, key))


@dataclass(frozen=True)
class Option:
    """An option of a component: its name, its type in words, and its default as a recipe writes it, or `required`."""

    name: str
    type: str
    default: str


@dataclass(frozen=True)
class Description:
    """The description of a component in listings. `injected` are the kinds that it takes from the recipe."""

    kind: str
    name: str
    plugin: str
    summary: str
    reference: str | None
    doc: str
    target: str
    options: tuple[Option, ...]
    injected: tuple[str, ...]


def describe(kind: str, name: str) -> Description:
    """Import a component and describe it. Raises RecipeError or PluginError if it cannot be found or loaded."""
    found = registry().find(kind, name)
    cls = found.load()
    parameters = component_parameters(cls, kind)
    return Description(
        kind,
        found.name,
        found.plugin.label,
        found.entry.summary,
        found.entry.reference,
        inspect.getdoc(cls) or found.entry.summary,
        found.entry.target,
        tuple(Option(p.name, type_text(p), default_text(p)) for p in parameters if p.role != "injected"),
        tuple(p.target for p in parameters if p.role == "injected"),
    )


def type_text(parameter: Parameter) -> str:
    """Return the type of an option in words: `number > 0`, `one of small, large`, `list of whole numbers >= 1`."""
    if parameter.role == "component":
        return f"{parameter.target}{' or null' if parameter.optional else ''}"
    if parameter.role == "components":
        return f"list of {parameter.target}"
    if parameter.role == "named components":
        return f"mapping of names to {parameter.target}s{' or null' if parameter.optional else ''}"
    return _text(parameter.annotation)


def default_text(parameter: Parameter) -> str:
    """Return the default as it would be written, or `required`."""
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
    """Return the bounds of an option, as pydantic keeps them in the `metadata` of a Field."""
    found = []
    for mark in marks:
        for limit in getattr(mark, "metadata", [mark]):
            found += [f"{sign} {getattr(limit, key):g}" for key, sign in _SIGNS.items() if hasattr(limit, key)]
    return found
