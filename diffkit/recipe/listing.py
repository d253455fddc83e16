"""What can be named, and what a recipe names, without importing torch or any component."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import DiffkitError, Mark
from ..host import Registered, registry
from .load import Source, read
from .signature import Parameter, section_parameters
from .spec import Section, Spec
from .tree import Node

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


def _named(cls: type[Section], node: Node, path: str) -> Iterator[tuple[str, str, str]]:
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
