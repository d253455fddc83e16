"""From a tree to validated sections: names looked up, options checked, every component built once on trial.

All faults are collected. What failed is None, and what does not depend on it is still checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from ..config import ComponentSpec, Config
from ..errors import DataError, DiffkitError, Mark, PluginError, RecipeError
from ..host import registry
from ..network import Shape
from . import errors
from .errors import SYNONYMS
from .signature import REQUIRED, Parameter, component_parameters, parameters_of, section_parameters
from .spec import Spec
from .yaml import Node

S = TypeVar("S", bound=Config)
GLOBAL = ("data", "codec", "schedule", "parameterization", "network", "objective", "sample.sampler", "sample.grid")
"""Paths of the components that others may ask for."""

MOST = 50
"""How many unknown keys are told one by one."""
FAILED: Any = object()


class Resolver:
    """One validation of the tree `root`. `faults` is what was found; by path, `values` are the values that are valid
    and `built` the trial objects; `scope` holds those that are injected, by kind."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.faults: list[DiffkitError] = []
        self.values: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.built: dict[str, Any] = {}
        self.scope: dict[str, Any] = {}
        self.data_error: DataError | None = None
        self._objects: Mapping[str, object] = {}
        self._unknown: list[tuple[Mark, str, Sequence[str]]] = []
        self._valid: dict[str, str] = {}
        self._index(Spec, "")

    def read(self, cls: type[S]) -> S | None:
        """The whole tree as `cls`, None where it has faults."""
        made = self.section(cls, self.root, "")
        self._tell_unknown()
        return made if isinstance(made, cls) and not self.faults else None

    def alone(self, kind: str, scope: Mapping[str, object], objects: Mapping[str, object]) -> ComponentSpec | None:
        """The whole tree as one component, with what a recipe would inject in `scope` and further arguments."""
        self.scope |= scope
        self._valid.clear()
        self._objects = objects
        chosen = self.component(kind, self.root, "")
        self._tell_unknown()
        return chosen

    def _tell_unknown(self) -> None:
        """Report unknown keys, now that all valid ones are known; what one of them was meant to be is not missing."""
        meant = set()
        for mark, key, here in self._unknown[:MOST]:
            fault, path = errors.unknown_key(mark, key, here, self._valid)
            self.faults.append(fault)
            meant.add(path)
        if rest := self._unknown[MOST:]:
            told = f"{len(rest)} more unknown keys follow"
            self.faults.append(RecipeError(told, code="DK104", where=rest[0][0], fix="remove them"))
        self._unknown.clear()
        self.faults = [f for f in self.faults if f.code != "DK105" or f.message.partition(" ")[0] not in meant]

    def section(self, cls: type[Config], node: Node, path: str) -> Config | None:
        """The section written at `node`."""
        parameters = section_parameters(cls)
        owner = next((p for p in parameters if p.name == "component"), None)
        entries = node.entries("name" if owner else cls.shorthand)
        if entries is None:
            self.faults.append(errors.wrong(node, "a mapping"))
            return None
        before = len(self.faults) + len(self._unknown)
        known = {p.name for p in parameters} - {"component"}
        values: dict[str, Any] = {}
        for parameter in parameters:
            at = _join(path, parameter.name)
            if parameter is owner:
                continue
            values |= self._field(parameter, entries.get(parameter.name), at, node)
        rest = {name: below for name, below in entries.items() if name not in known}
        if owner is not None:
            parts = [p.name for p in parameters if p.role == "component" and p is not owner]
            given = {name: self.built[_join(path, name)] for name in parts if _join(path, name) in self.built}
            if "name" not in rest and isinstance(owner.default, str):
                rest = {"name": Node(owner.default, node.mark, node.key), **rest}
            component = Node(rest, node.mark, node.key)
            values["component"] = self.component(owner.target, component, path, given, known)
        else:
            self._unread(rest, tuple(known))
        if len(self.faults) + len(self._unknown) > before:
            return None
        return cls(**values)

    def component(
        self,
        kind: str,
        node: Node,
        path: str,
        given: Mapping[str, object] | None = None,
        beside: Iterable[str] = (),
    ) -> ComponentSpec | None:
        """The component written at `node`. `given` are parts of its section, injected into it alone; `beside` the
        keys of that section, told as valid too."""
        entries = node.entries("name")
        if entries is None:
            self.faults.append(errors.wrong(node, f"the name of the {kind}, or a mapping with it"))
            return None
        name = entries.get("name")
        if name is None or not isinstance(name.value, str):
            names = [one.name for one in registry().entries(kind)]
            what = f"the name of the {kind}"
            wrong = errors.wrong(name, what, choices=names) if name and name.value is not None else None
            self.faults.append(wrong or errors.missing(node.label, _join(path, "name"), "NAME", names))
            aliases = [key for key in entries if "name" in SYNONYMS.get(key, ())]
            self._unknown += [(entries[key].label, key, ("name",)) for key in aliases]
            return None
        try:
            found = registry().find(kind, name.value)
            cls = found.load()
            parameters = component_parameters(cls, kind)
        except DiffkitError as error:
            self._place(error, replace(name.mark, path=_join(path, "name")))
            return None
        self.names[path] = found.name
        before = len(self.faults) + len(self._unknown)
        options = self._options(parameters, entries, path, node, (*beside,))
        chosen = ComponentSpec(kind, found.name, options, found.plugin.name, found.plugin.label)
        if len(self.faults) + len(self._unknown) > before:
            return None
        return chosen if self._try(chosen, parameters, entries, path, given or {}) else None

    def _options(
        self,
        parameters: Sequence[Parameter],
        entries: Mapping[str, Node],
        path: str,
        node: Node,
        beside: tuple[str, ...],
    ) -> dict[str, Any]:
        options: dict[str, Any] = {}
        objects = self._objects if not path else {}
        open_to = [p for p in parameters if p.role != "injected" and p.name not in objects]
        self._valid |= {p.name: _join(path, p.name) for p in open_to if p.name not in self._valid}
        for parameter in open_to:
            below = entries.get(parameter.name)
            if below is not None or parameter.default is REQUIRED:
                options |= self._field(parameter, below, _join(path, parameter.name), node)
        valid = ("name", *(p.name for p in open_to))
        for key, below in entries.items():
            injected = next((p for p in parameters if p.name == key and p.role == "injected"), None)
            if injected is not None:
                told = f"{key} is taken from the recipe and cannot be set here"
                self.faults.append(
                    RecipeError(told, code="DK104", where=below.label, fix=f"remove it; set {key} itself")
                )
            elif key not in valid:
                self._unknown.append((below.label, key, (*valid, *beside)))
        return options

    def _field(self, parameter: Parameter, node: Node | None, path: str, parent: Node) -> dict[str, Any]:
        """{name: value} of one field; nothing where it is left to its default, or failed."""
        if node is None or (node.value is None and parameter.optional):
            node = self._absent(parameter, node, path, parent)
            if node is None:
                return {}
        value = self._value(parameter, node, path)
        if value is FAILED:
            return {}
        self.values[path] = value
        return {parameter.name: value}

    def _absent(self, parameter: Parameter, node: Node | None, path: str, parent: Node) -> Node | None:
        """What stands for a field that is not given: a default name, an empty section, or nothing."""
        mark = parent.label
        if node is not None:
            return None
        if parameter.role == "component" and isinstance(parameter.default, str):
            return Node(parameter.default, replace(mark, path=path), replace(mark, path=path))
        if parameter.default is not REQUIRED:
            return None
        if parameter.role == "section" and self._optional_section(parameter.target):
            return Node({}, replace(mark, path=path), replace(mark, path=path))
        kind, value = parameter.target if parameter.role == "component" else None, "..."
        if parameter.role == "section":
            inner = section_parameters(parameter.target)
            kind = next((p.target for p in inner if p.name == "component"), None)
            value = "{" + ", ".join(f"{p.name}: ..." for p in inner if p.default is REQUIRED) + "}"
        names = [one.name for one in registry().entries(kind)] if kind else ()
        self.faults.append(errors.missing(mark, path, "NAME" if kind else value, names))
        return None

    @staticmethod
    def _optional_section(cls: type[Config]) -> bool:
        """Whether everything in a section has a default, so that an absent one means all of them."""
        return all(
            p.default is not REQUIRED or (p.role == "section" and Resolver._optional_section(p.target))
            for p in section_parameters(cls)
        )

    def _value(self, parameter: Parameter, node: Node, path: str) -> Any:
        """The value written at `node`, FAILED where it is not valid."""
        if parameter.role == "option":
            return self._option(parameter, node)
        one = parameter.role in ("component", "section")
        if node.value is None and not one:
            return ()
        read = self.component if parameter.role in ("component", "components") else self.section
        many = isinstance(node.value, list) and not one
        items = node.value if isinstance(node.value, list) and not one else [node]
        made = [read(parameter.target, item, f"{path}.{i}" if many else path) for i, item in enumerate(items)]
        if any(item is None for item in made):
            return FAILED
        return made[0] if one else tuple(made)

    def _option(self, parameter: Parameter, node: Node) -> Any:
        """A plain value, strict as JSON is: lists become tuples, and nothing else becomes anything else."""
        try:
            return parameter.adapter.validate_json(json.dumps(node.plain()))
        except ValidationError as error:
            self.faults += errors.from_pydantic(node, error.errors(include_url=False))
            return FAILED

    def _try(
        self,
        chosen: ComponentSpec,
        parameters: Sequence[Parameter],
        entries: Mapping[str, Node],
        path: str,
        given: Mapping[str, object],
    ) -> bool:
        """Build it once, modules on the meta device; whether it can be, as far as its surroundings are known."""
        name = entries["name"]
        for parameter in parameters:
            if parameter.role != "injected" or parameter.target in given:
                continue
            if parameter.target == "shape":
                self.shape()
            if parameter.target in self.scope or parameter.default is not REQUIRED:
                continue
            stages = STAGES.index(chosen.kind) if chosen.kind in STAGES else len(STAGES)
            if parameter.target not in STAGES[:stages]:
                self._place(unavailable(chosen, parameter.target), name.mark)
                return False
            return True  # what it asks for has failed, and that is told already
        unread = [key for key in given if key not in {p.target for p in parameters if p.role == "injected"}]
        for key in unread:
            written = self.root.at(_join(path, key)) or name
            told = f"{_join(path, key)} is not read by {chosen.kind} {chosen.name}"
            self.faults.append(RecipeError(told, code="DK117", where=written.label, fix="remove it"))
        if unread:
            return False
        try:
            made = try_build(chosen, {**self.scope, **given}, self._objects if not path else {})
        except DataError as error:
            self.data_error = error
            return True
        except DiffkitError as error:
            self._place(error, locate(str(error), entries))
        except ValueError as error:
            refused = RecipeError(f"{chosen.kind} {chosen.name}: {error}", code="DK107")
            self._place(refused, locate(str(error), entries))
        except Exception as error:  # noqa: BLE001 - a plugin's constructor may fail in any way
            failed = PluginError(
                f"{chosen.kind} {chosen.name} failed: {type(error).__name__}: {error}".splitlines()[0],
                code="DK252",
                fix="a component should refuse its options with ValueError",
            )
            self._place(failed, locate(str(error), entries))
        else:
            self.built[path] = made
            if path in GLOBAL:
                self.scope[chosen.kind] = made
            return True
        return False

    def shape(self) -> Shape | None:
        """The shape of what diffuses, once data, codec and parameterization are there; None where they are not."""
        if "shape" not in self.scope and {"data", "codec", "parameterization"} <= self.scope.keys():
            try:
                spec = self.scope["codec"].spec(self.scope["data"].spec)
            except DataError as error:
                self.data_error = error
                return None
            out = self.scope["parameterization"].out_channels(spec.channels)
            self.scope["shape"] = Shape(spec.channels, out, tuple(spec.size), spec.classes)
        return self.scope.get("shape")

    def _place(self, error: DiffkitError, mark: Mark) -> None:
        if error.where is None:
            error.where = mark
        self.faults.append(error)

    def _unread(self, rest: Mapping[str, Node], known: Sequence[str]) -> None:
        self._unknown += [(node.label, key, known) for key, node in rest.items()]

    def _index(self, cls: type[Config], path: str) -> None:
        """Note where every key of every section is valid, for suggestions."""
        for parameter in section_parameters(cls):
            at = _join(path, parameter.name)
            if parameter.name not in ("component", "name", "schedule"):
                self._valid.setdefault(parameter.name, at)
            if parameter.role in ("section", "sections"):
                self._index(parameter.target, at)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


STAGES = (
    *("data", "augmentation", "codec", "schedule", "parameterization", "shape", "network"),
    *("weighting", "times", "objective", "sampler", "grid", "guidance", "metric", "tracker"),
)
"""The order in which the parts of a recipe are built; a component may ask for those before it."""


def construct(chosen: ComponentSpec, scope: Mapping[str, object], objects: Mapping[str, object] | None = None) -> Any:
    """The object, with what it asks for taken from `scope`, which maps kinds (and `shape`) to what was built, and
    with `objects` as further arguments.

    Raises PluginError DK251 where it asks for what the scope lacks and has no default for.
    """
    cls, parameters = parameters_of(chosen)
    arguments: dict[str, Any] = dict(objects or {})
    for parameter in parameters:
        if parameter.role == "injected":
            if parameter.target in scope:
                arguments[parameter.name] = scope[parameter.target]
            elif parameter.default is REQUIRED:
                raise unavailable(chosen, parameter.target)
        elif parameter.name in chosen.options:
            arguments[parameter.name] = _materialise(chosen.options[parameter.name], scope)
    return cls(**arguments)


def unavailable(chosen: ComponentSpec, kind: str) -> PluginError:
    """A component asks for something that is not built when its turn comes."""
    before = STAGES[: STAGES.index(chosen.kind)] if chosen.kind in STAGES else ()
    return PluginError(
        f"{chosen.kind} {chosen.name} asks for the {kind} of the recipe, which there is none of",
        code="DK251",
        choices=before,
        fix="give the parameter a default, or ask for what is built before",
    )


def _materialise(value: Any, scope: Mapping[str, object]) -> Any:
    if isinstance(value, ComponentSpec):
        return construct(value, scope)
    if isinstance(value, tuple) and any(isinstance(item, ComponentSpec) for item in value):
        return tuple(_materialise(item, scope) for item in value)
    return value


def try_build(chosen: ComponentSpec, scope: Mapping[str, object], objects: Mapping[str, object]) -> Any:
    """The object; a network on the meta device, unless its constructor must read numbers. No generator moves."""
    with torch.random.fork_rng(devices=[]):
        if chosen.kind != "network":
            return construct(chosen, scope, objects)
        try:
            with torch.device("meta"):
                return construct(chosen, scope, objects)
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
        return construct(chosen, scope, objects)


def locate(message: str, entries: Mapping[str, Node]) -> Mark:
    """The option that a message speaks of, by its name or else by its value; else the name of the component."""
    options = [(key, node) for key, node in entries.items() if key != "name"]
    named = [node for key, node in options if re.search(rf"\b{re.escape(key)}\b", message)]
    words = set(re.findall(r"[\w.+-]+", message))
    valued = [node for _, node in options if words & {str(leaf) for leaf in _leaves(node)}]
    return (named or (valued if len(valued) == 1 else []) or [entries["name"]])[0].mark


def _leaves(node: Node) -> list[object]:
    """The value of a scalar, or the items of a list of scalars."""
    return [item.value for item in node.value] if isinstance(node.value, list) else [node.value]
