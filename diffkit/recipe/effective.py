"""The whole recipe: every value in force, defaults included, with its origin; its hash, and differences."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel, ValidationError

from ..config import ComponentSpec, Config
from ..host import registry
from .load import FLAG
from .signature import REQUIRED, Parameter, component_parameters, fields_of, parameters_of
from .spec import Recipe
from .yaml import Node, is_plain


@dataclass(frozen=True)
class Value:
    """One value and its origin: `file:line`, `--set`, `default`, or `default (PLUGIN)` for one of a component."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Change:
    """A value that differs between two recipes; `before` or `after` is None if that recipe lacks the path."""

    path: str
    before: Value | None
    after: Value | None


Tree = dict[str, Any]


def effective(recipe: Recipe) -> dict[str, Any]:
    """Return the whole recipe as plain values; loading it gives the same recipe."""
    return {name: _bare(value) for name, value in _section(recipe, recipe.root, "default").items()}


def origins(recipe: Recipe) -> dict[str, Value]:
    """Return every value of the whole recipe by its dotted path, with its origin."""
    return dict(_flat(_section(recipe, recipe.root, "default"), ""))


def effective_yaml(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, each line with the origin of its value as a comment."""
    return emit(_section(recipe, recipe.root, "default"))


def recipe_hash(recipe: Recipe) -> str:
    """Return a hash of the effective values, which does not depend on how they are written: 64 hex digits."""
    text = json.dumps(effective(recipe), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def difference(before: Recipe, after: Recipe) -> tuple[Change, ...]:
    """Return the values in which two recipes differ, in the order of the first."""
    old, new = origins(before), origins(after)
    return tuple(
        Change(path, old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if path not in old or path not in new or old[path].value != new[path].value
    )


def _section(section: Config, node: Node | None, absent: str) -> Tree:
    """Return the Values of a section by field; a field that is not given has the origin `absent`."""
    component: ComponentSpec | None = getattr(section, "component", None)
    tree = _component(component, node, absent) if component else {}
    for parameter, below in fields_of(type(section), node):
        value = getattr(section, parameter.name)
        if parameter.name == "component" or (parameter.name, value) == ("task", "diffusion"):
            continue  # runs of earlier versions have no task
        if value is None and component is not None and parameter.role == "component":
            value = _own_default(component, parameter)
            if value is None:
                continue
        tree[parameter.name] = _any(value, below, absent, parameter)
    return tree


def _any(value: Any, node: Node | None, absent: str, parameter: Parameter | None = None) -> Any:
    """Convert a section, a component, a list of these, named components, or a plain value to a tree of Values."""
    if isinstance(value, Config):
        return _section(value, node, absent)
    if isinstance(value, ComponentSpec):
        return _component(value, node, absent)
    if isinstance(value, tuple) and value and isinstance(value[0], Config | ComponentSpec):
        items = node.items() if node is not None else [None] * len(value)
        return [_any(item, at, absent) for item, at in zip(value, items, strict=True)]
    if isinstance(value, dict) and any(isinstance(item, ComponentSpec) for item in value.values()):
        return {key: _component(item, node.child(key) if node else None, absent) for key, item in value.items()}
    return Value(_plain(value, parameter), _origin(node, absent))


def _component(chosen: ComponentSpec, node: Node | None, absent: str) -> Tree:
    below = (node.entries("name") if node else None) or {}
    name = chosen.name if _is_unique(chosen) else f"{chosen.plugin}/{chosen.name}"
    tree: Tree = {"name": Value(name, _origin(below.get("name"), absent))}
    inherited = f"default ({chosen.label})"
    _, parameters = parameters_of(chosen)
    for parameter in parameters:
        if parameter.role == "injected":
            continue
        if parameter.name in chosen.options:
            tree[parameter.name] = _any(chosen.options[parameter.name], below.get(parameter.name), inherited, parameter)
        elif parameter.default is not REQUIRED:
            tree[parameter.name] = _default(parameter, inherited)
    return tree


def _default(parameter: Parameter, origin: str) -> Any:
    if parameter.role == "component":
        known = chosen_of(parameter.default, parameter.target)
        return _component(known, None, origin) if known else Value(None, origin)
    if parameter.role == "components":
        found = [chosen_of(one, parameter.target) for one in parameter.default or ()]
        return [_component(one, None, origin) for one in found if one] or Value([], origin)
    return Value(_plain(parameter.default, parameter), origin)


def chosen_of(instance: Any, kind: str) -> ComponentSpec | None:
    """Return the registered name and options of an instance, such as a default of another component; None if it has
    none.
    """
    if instance is None:
        return None
    cls: type = type(instance)
    target = f"{cls.__module__}:{cls.__qualname__}"
    found = next((one for one in registry().entries(kind) if one.entry.target == target), None)
    if found is None:
        return None
    options: dict[str, Any] = {}
    for parameter in component_parameters(cls, kind):
        if parameter.role == "injected" or not hasattr(instance, parameter.name):
            continue
        value = getattr(instance, parameter.name)
        if parameter.role == "component":
            value = chosen_of(value, parameter.target)
        elif parameter.role == "components":
            value = tuple(one for one in (chosen_of(v, parameter.target) for v in value) if one)
        if value is not None:
            options[parameter.name] = value
    return ComponentSpec(kind, found.name, options, found.plugin.name, found.plugin.label)


def _own_default(chosen: ComponentSpec, parameter: Parameter) -> ComponentSpec | None:
    """Return the times or weighting that an objective has by default."""
    _, parameters = parameters_of(chosen)
    own = next((p for p in parameters if p.role == "injected" and p.target == parameter.target), None)
    return None if own is None or own.default is REQUIRED else chosen_of(own.default, parameter.target)


def _is_unique(chosen: ComponentSpec) -> bool:
    return sum(one.name == chosen.name for one in registry().entries(chosen.kind)) == 1


def _origin(node: Node | None, absent: str) -> str:
    if node is None:
        return absent
    return FLAG if node.mark.file == FLAG else f"{node.mark.file}:{node.mark.line}"


def _plain(value: Any, parameter: Parameter | None) -> Any:
    """Convert a value to one that YAML can hold; for a real option 1 becomes 1.0."""
    if parameter is not None and parameter.role == "option":
        try:
            text = parameter.adapter.dump_json(value, warnings="none")
            value = parameter.adapter.validate_json(text)
        except ValidationError:
            return _simple(value)  # a default need not satisfy its own annotation
    return _simple(value)


def _simple(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _simple(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {str(key): _simple(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_simple(item) for item in value]
    return value


def _bare(tree: Any) -> Any:
    if isinstance(tree, Value):
        return tree.value
    if isinstance(tree, list):
        return [_bare(item) for item in tree]
    return {name: _bare(item) for name, item in tree.items()}


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Value]]:
    if isinstance(tree, Value):
        yield path, tree
        return
    steps = enumerate(tree) if isinstance(tree, list) else tree.items()
    for step, item in steps:
        yield from _flat(item, f"{path}.{step}" if path else str(step))


COMMENT_AT = 44


def emit(tree: dict[str, Any]) -> str:
    """Write a tree of mappings, lists and leaves as YAML; a leaf has a `value`, and an `origin` for the comment."""
    return "\n".join(_mapping(tree, "")) + "\n"


def inline(value: Any) -> str:
    """Write one value on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if is_plain(value) else f'"{"".join(_escaped(letter) for letter in value)}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(str(key))}: {inline(item)}" for key, item in value.items()) + "}"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML 1.1 wants the point too


def _escaped(letter: str) -> str:
    """Return a character as written between double quotes in YAML."""
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _mapping(tree: dict[str, Any], indent: str) -> Iterator[str]:
    for key, item in tree.items():
        yield from _entry(f"{indent}{key}:", item, indent)


def _entry(head: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, dict):
        yield head
        yield from _mapping(item, indent + "  ")
    elif isinstance(item, list):
        yield head
        for one in item:
            lines = list(_mapping(one, indent + "    "))
            yield f"{indent}  - {lines[0].lstrip()}"
            yield from lines[1:]
    else:
        line = f"{head} {inline(item.value)}"
        yield f"{line:<{COMMENT_AT}}  # {item.origin}" if item.origin else line
