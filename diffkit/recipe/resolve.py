"""Turn the tree of a recipe into validated sections and resolved components: names looked up, options checked.

All faults are collected. A value that failed is None; values that do not depend on it are still checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from ..config import ComponentSpec, Config
from ..errors import DiffkitError, Mark, RecipeError
from ..host import registry
from . import errors
from .signature import REQUIRED, Parameter, Resolved, component_parameters, must_be_given, section_parameters
from .spec import TASKS, Recipe, recipe_class
from .yaml import Node, join

S = TypeVar("S", bound=Config)

MAX_UNKNOWN_KEYS = 50
"""The number of unknown keys that are reported one by one."""
FAILED: Any = object()


class Resolver:
    """One validation of the tree `root`.

    `faults` lists the errors; by path, `values` are the valid values and `names` the names of components;
    `components` are those that sections name, in the order of the sections.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.faults: list[DiffkitError] = []
        self.values: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.components: list[Resolved] = []
        self._unknown: list[tuple[Mark, str, Sequence[str]]] = []
        self._valid: dict[str, str] = {}

    def read(self, cls: type[S]) -> S | None:
        """Validate the whole tree as `cls`; None if it has faults."""
        self._index(recipe_class(self.root), "")
        made = self.section(cls, self.root, "")
        self._report_unknown()
        return made if isinstance(made, cls) and not self.faults else None

    def alone(self, kind: str, objects: Mapping[str, object]) -> Resolved | None:
        """Validate the whole tree as one component of `kind`, with `objects` as further arguments."""
        made = self.component(kind, self.root, "", objects)
        self._report_unknown()
        return made

    def section(self, cls: type[Config], node: Node, path: str) -> Config | None:
        """Validate the section written at `node`; None after a fault."""
        parameters = section_parameters(cls)
        owner = next((p for p in parameters if p.name == "component"), None)
        entries = node.entries("name" if owner else cls.shorthand)
        if entries is None:
            self.faults.append(errors.wrong(node, "a mapping"))
            return None
        before = self._count()
        values: dict[str, Any] = {}
        for parameter in parameters:
            if parameter is not owner:
                values |= self._field(parameter, entries.get(parameter.name), join(path, parameter.name), node)
        known = [p.name for p in parameters if p is not owner]
        rest = {name: below for name, below in entries.items() if name not in known}
        if issubclass(cls, Recipe):
            rest = self._without_other_tasks(cls, rest)
        if owner is None:
            self._unknown += [(below.label, key, known) for key, below in rest.items()]
        else:
            if "name" not in rest and isinstance(owner.default, str):
                rest = {"name": Node(owner.default, node.mark, node.key), **rest}
            parts = {p.name: values[p.name] for p in parameters if p.role == "component" and p.name in values}
            whole = Node(rest, node.mark, node.key)
            values["component"] = self.component(owner.target, whole, path, parts, known)
        named = [value for name, value in values.items() if owner is None or name not in parts]
        self.components += [one for one in _flat(named) if isinstance(one, Resolved)]
        if self._count() > before:
            return None
        return cls(**{name: _spec(value) for name, value in values.items()})

    def _without_other_tasks(self, cls: type[Recipe], rest: Mapping[str, Node]) -> dict[str, Node]:
        """Report the keys of other tasks; return the other unknown keys."""
        keys = {task: {p.name for p in section_parameters(one)} for task, one in TASKS.items()}
        own = next(task for task, one in TASKS.items() if one is cls)
        kept = dict(rest)
        for name, below in rest.items():
            others = [task for task in keys if name in keys[task]]
            meant = None if self.root.at("task") else errors.meant(name, keys[own], {})
            if others and meant is None:
                self.faults.append(errors.of_another_task(below.label, name, own, sorted(keys[own]), others))
                del kept[name]
        return kept

    def component(
        self, kind: str, node: Node, path: str, given: Mapping[str, object] = {}, beside: Collection[str] = ()
    ) -> Resolved | None:
        """Validate the component written at `node`.

        Args:
            kind: the kind of the component.
            node: the name of the component, or a mapping with its name and options.
            path: the dotted path of `node`.
            given: further arguments, which the node need not hold: the other components of its section, or objects.
            beside: the keys of its section, valid beside its options.

        Returns:
            The component, None after a fault.
        """
        entries = node.entries("name")
        if entries is None:
            self.faults.append(errors.wrong(node, f"the name of the {kind}, or a mapping with it"))
            return None
        name = entries.get("name")
        if name is None or not isinstance(name.value, str):
            names = [one.name for one in registry().entries(kind)]
            wrong = name is not None and name.value is not None
            self.faults.append(
                errors.wrong(name, f"the name of the {kind}", choices=names)
                if name is not None and wrong
                else errors.missing(node.label, join(path, "name"), "NAME", names)
            )
            aliases = [key for key in entries if errors.means_name(key)]
            self._unknown += [(entries[key].label, key, ("name",)) for key in aliases]
            return None
        try:
            found = registry().find(kind, name.value)
            cls = found.load()
            parameters = component_parameters(cls, kind)
        except DiffkitError as error:
            error.where = error.where or replace(name.mark, path=join(path, "name"))
            self.faults.append(error)
            return None
        self.names[path] = found.name
        before = self._count()
        injected = {p.name for p in parameters if p.role == "injected"}
        for part in given:
            if beside and part not in injected:
                written = self.root.at(join(path, part)) or name
                self.faults.append(errors.not_read(join(path, part), f"{kind} {found.name}", written.label))
        options = self._options(parameters, entries, path, node, given, beside)
        if self._count() > before:
            return None
        plain = {key: _spec(value) for key, value in options.items()}
        spec = ComponentSpec(kind, found.name, plain, found.plugin.name, found.plugin.label)
        return Resolved(path, spec, cls, parameters, {**options, **given}, entries)

    def _options(
        self,
        parameters: Sequence[Parameter],
        entries: Mapping[str, Node],
        path: str,
        node: Node,
        given: Mapping[str, object],
        beside: Collection[str],
    ) -> dict[str, Any]:
        options: dict[str, Any] = {}
        open_to = [p for p in parameters if p.role != "injected" and p.name not in given]
        self._valid |= {p.name: join(path, p.name) for p in open_to if p.name not in self._valid}
        for parameter in open_to:
            below = entries.get(parameter.name)
            if below is not None or parameter.default is REQUIRED:
                options |= self._field(parameter, below, join(path, parameter.name), node)
        injected = {p.name for p in parameters if p.role == "injected"}
        valid = ("name", *(p.name for p in open_to), *beside)
        for key, below in entries.items():
            if key in injected:
                self.faults.append(errors.injected(key, below.label))
            elif key not in valid:
                self._unknown.append((below.label, key, valid))
        return options

    def _field(self, parameter: Parameter, node: Node | None, path: str, parent: Node) -> dict[str, Any]:
        """Return {name: value} for one field; an empty mapping if the field keeps its default, or failed."""
        if node is None:
            node = self._absent(parameter, path, parent)
        elif node.value is None and parameter.optional:
            node = None
        value = FAILED if node is None else self._value(parameter, node, path)
        if value is FAILED:
            return {}
        self.values[path] = value
        return {parameter.name: value}

    def _absent(self, parameter: Parameter, path: str, parent: Node) -> Node | None:
        """Return the node of a field that is not given: a default name, an empty section, or None."""
        here = replace(parent.label, path=path)
        if parameter.role == "component" and isinstance(parameter.default, str):
            return Node(parameter.default, here, here)
        if parameter.default is not REQUIRED:
            return None
        if parameter.role == "section" and not must_be_given(parameter):
            return Node({}, here, here)
        kind, value = parameter.target if parameter.role in ("component", "components") else None, "..."
        if parameter.role == "section":
            inner = section_parameters(parameter.target)
            kind = next((p.target for p in inner if p.name == "component"), None)
            value = "{" + ", ".join(f"{p.name}: ..." for p in inner if p.default is REQUIRED) + "}"
        names = [one.name for one in registry().entries(kind)] if kind else ()
        self.faults.append(errors.missing(parent.label, path, "NAME" if kind else value, names))
        return None

    def _value(self, parameter: Parameter, node: Node, path: str) -> Any:
        """Return the value written at `node`, or FAILED if it is not valid. An item without brackets counts as a list
        of one item.
        """
        if parameter.role == "option":
            return self._option(parameter, node)
        read = self.section if parameter.role in ("section", "sections") else self.component
        if parameter.role in ("component", "section"):
            made = read(parameter.target, _with_name(node, parameter), path)
            return FAILED if made is None else made
        if parameter.role == "named components":
            if not isinstance(node.value, dict):
                self.faults.append(errors.wrong(node, f"a mapping of names to {parameter.target}s"))
                return FAILED
            by_name = {key: read(parameter.target, item, join(path, key)) for key, item in node.value.items()}
            return FAILED if None in by_name.values() else by_name
        items = node.items()
        all_made = tuple(read(parameter.target, item, f"{path}.{i}") for i, item in enumerate(items))
        return FAILED if None in all_made else all_made

    def _option(self, parameter: Parameter, node: Node) -> Any:
        """Validate a plain value without conversion of types, except that a list becomes a tuple."""
        try:
            value = parameter.adapter.validate_json(json.dumps(node.plain()))
        except ValidationError as error:
            self.faults += errors.from_pydantic(node, error.errors(include_url=False))
            return FAILED
        return _absolute(value, node.mark.file) if parameter.is_path and isinstance(value, str) else value

    def _count(self) -> int:
        return len(self.faults) + len(self._unknown)

    def _report_unknown(self) -> None:
        """Report unknown keys after all valid keys are collected; a missing key with a misspelled one is reported
        once.
        """
        meant = set()
        for mark, key, here in self._unknown[:MAX_UNKNOWN_KEYS]:
            fault, path = errors.unknown_key(mark, key, here, self._valid)
            self.faults.append(fault)
            meant.add(path)
        if rest := self._unknown[MAX_UNKNOWN_KEYS:]:
            message = f"{len(rest)} more unknown keys follow"
            self.faults.append(RecipeError(message, code="DK104", where=rest[0][0], fix="remove them"))
        self._unknown.clear()
        self.faults = [f for f in self.faults if f.code != "DK105" or f.message.partition(" ")[0] not in meant]

    def _index(self, cls: type[Config], path: str) -> None:
        """Record the paths at which each key is valid, for suggestions."""
        for parameter in section_parameters(cls):
            at = join(path, parameter.name)
            if parameter.name not in ("component", "name", "schedule", "warmup"):
                self._valid.setdefault(parameter.name, at)
            if parameter.role in ("section", "sections"):
                self._index(parameter.target, at)


def _absolute(path: str, file: str) -> str:
    """Return a URL, or an absolute path: a relative one starts at the folder of `file`, or at the working directory."""
    if "://" in path:
        return path
    found = os.path.expanduser(path)
    beside = os.path.join(os.path.dirname(file), found) if os.path.isfile(file) else found
    return os.path.abspath(beside if os.path.lexists(beside) or not os.path.lexists(found) else found)


def _with_name(node: Node, parameter: Parameter) -> Node:
    """Return the mapping of a component with the default name if it has none: `optimizer: {lr: 0.001}`."""
    if parameter.role != "component" or not isinstance(parameter.default, str) or not isinstance(node.value, dict):
        return node
    if any(key == "name" or errors.means_name(key) for key in node.value):
        return node
    return Node({"name": Node(parameter.default, node.mark, node.key), **node.value}, node.mark, node.key)


def _spec(value: Any) -> Any:
    """Return the `ComponentSpec` of a resolved component, alone, in a tuple or mapping; any other value as it is."""
    if isinstance(value, dict):
        return {key: _spec(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_spec(item) for item in value)
    return value.spec if isinstance(value, Resolved) else value


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,)
