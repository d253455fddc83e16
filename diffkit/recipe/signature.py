"""The parameters that a recipe can set, derived from the signature of a constructor or the fields of a section.

A parameter is injected if its name is a kind, `shape`, `condition`, `conditions` or `dataset`, and its annotation is
the class of that. A parameter with the class of a kind and any other name, alone, optional or in a tuple, is a nested
component. Every other parameter is an option, which pydantic validates strictly.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from ..config import ComponentField, ComponentSpec, Config, PathMark
from ..errors import PluginError
from ..host import registry
from .yaml import Node

Role = Literal["option", "injected", "component", "components", "named components", "section", "sections"]
DATASET = "dataset"
SHARED = {
    "diffkit.codec:CodecRecord": "record",
    "diffkit.network:Shape": "shape",
    "diffkit.data:ConditionSpec": "condition",
    "diffkit.data:MapDataset": DATASET,
    "diffkit.conditioner:Conditions": "conditions",
}
"""Classes, besides those of kinds, whose objects a recipe passes to constructors: the names of the parameters."""
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()
"""The default of a parameter without one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter of a constructor or a field of a section; `target` is a kind, or the class of a section."""

    name: str
    annotation: Any
    default: Any
    role: Role
    target: Any = None
    optional: bool = False

    @property
    def required(self) -> bool:
        """Whether a recipe must give the parameter."""
        return self.default is REQUIRED and self.role != "injected"

    @cached_property
    def is_path(self) -> bool:
        """Whether the option is a `FilePath`."""
        found = get_args(_without_none(self.annotation)[0])
        return any(isinstance(mark, PathMark) for mark in found)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The validator of an option, which is strict and refuses inf and nan."""
        try:
            return TypeAdapter(self.annotation, config=STRICT)
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            return TypeAdapter(self.annotation)


@dataclasses.dataclass(frozen=True, eq=False)
class Resolved:
    """A component whose class is imported and whose options are valid.

    `arguments` maps parameters of the constructor to values; nested components are `Resolved` as well. `entries` is
    the mapping by which the recipe names it, with places.
    """

    path: str
    spec: ComponentSpec
    cls: type
    parameters: tuple[Parameter, ...]
    arguments: Mapping[str, Any]
    entries: Mapping[str, Node]


@cache
def component_parameters(cls: type, kind: str) -> tuple[Parameter, ...]:
    """Return the parameters of the constructor of `cls`, a component of `kind`.

    Raises PluginError DK250 if a recipe cannot set them: **kwargs, a parameter `name`, a parameter without annotation
    or schema, or a component that requires its own kind.
    """
    where = f"{cls.__module__}:{cls.__qualname__}"
    init = _constructor(cls)
    if init is None:
        return ()
    signature = list(inspect.signature(init).parameters.values())[1:]
    hints = _hints(cls, init, where)
    defaults = _defaults(cls)
    found = []
    for parameter in signature:
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise _refuse(f"{where} takes {parameter}, which a recipe cannot give", "name every parameter")
        if name == "name":
            raise _refuse(f"{where} has a parameter `name`, which in a recipe names the component", "rename it")
        if name not in hints:
            raise _refuse(f"the parameter {name} of {where} is not annotated", "annotate it")
        default = defaults.get(name, parameter.default)
        default = REQUIRED if default is inspect.Parameter.empty else default
        made = _classify(name, hints[name], default)
        if made.role == "injected" and made.target == kind:
            raise _refuse(f"{where} requires a `{kind}` and is a {kind} itself", f"call it inner: {kind}")
        if made.role == "option":
            _require_schema(made, where)
        found.append(made)
    return tuple(found)


def parameters_of(chosen: ComponentSpec) -> tuple[type, tuple[Parameter, ...]]:
    """Return the class of a component, and the parameters of its constructor."""
    cls = registry().find(chosen.kind, f"{chosen.plugin}/{chosen.name}" if chosen.plugin else chosen.name).load()
    return cls, component_parameters(cls, chosen.kind)


@cache
def section_parameters(cls: type[Config]) -> tuple[Parameter, ...]:
    """Return the fields of a section, in the order in which they are validated and built."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    order = [name for name in cls.model_fields if name not in cls.last]
    for name in (*order, *(name for name in cls.last if name in cls.model_fields)):
        info = cls.model_fields[name]
        default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True)
        bare, optional = _without_none(hints[name])
        of, role = _marked(bare)
        if of is not None:
            default = default.name if isinstance(default, ComponentSpec) else of.default or default
            found.append(Parameter(name, hints[name], default, role, of.kind, optional))
        elif (section := _section(bare)) is not None:
            found.append(Parameter(name, hints[name], default, section[1], section[0], optional))
        else:
            found.append(Parameter(name, hints[name], default, "option"))
    return tuple(found)


def fields_of(cls: type[Config], node: Node | None) -> Iterator[tuple[Parameter, Node | None]]:
    """Yield each field of a section with its node in the recipe; for `component` the node of the whole section."""
    parameters = section_parameters(cls)
    owner = any(p.name == "component" for p in parameters)
    below = (node.entries("name" if owner else cls.shorthand) if node is not None else None) or {}
    for parameter in parameters:
        yield parameter, node if parameter.name == "component" else below.get(parameter.name)


def base_class(parameter: Parameter) -> type:
    """Return the class that an injected or nested component must be of."""
    bare = _unmarked(_without_none(_unmarked(parameter.annotation))[0])
    item = get_args(bare)[0] if parameter.role == "components" else bare
    base: type = get_origin(item) or item
    return base


def must_be_given(parameter: Parameter) -> bool:
    """Return whether a recipe must give the field: it has no default, or is a section with such a field."""
    if parameter.role != "section":
        return parameter.required
    return parameter.required and any(must_be_given(inner) for inner in section_parameters(parameter.target))


def kind_of(annotation: Any) -> str | None:
    """Return the kind with `annotation` as base class; None for any other annotation."""
    annotation = get_origin(annotation) if isinstance(get_origin(annotation), type) else annotation
    if not isinstance(annotation, type):
        return None
    target = f"{annotation.__module__}:{annotation.__qualname__}"
    if target in SHARED:
        return SHARED[target]
    return next((kind.name for kind in registry().kinds.values() if kind.base == target), None)


def _classify(name: str, annotation: Any, default: Any) -> Parameter:
    bare, optional = _without_none(_unmarked(annotation))
    bare = _unmarked(bare)
    kind = kind_of(bare)
    if kind is not None and kind == name.replace("_", "-"):
        return Parameter(name, annotation, default, "injected", kind, optional)
    if kind not in (None, *SHARED.values()):
        return Parameter(name, annotation, default, "component", kind, optional)
    args = get_args(bare)
    if get_origin(bare) is tuple and len(args) == 2 and args[1] is ... and (kind := kind_of(args[0])):
        return Parameter(name, annotation, default, "components", kind, optional)
    return Parameter(name, annotation, default, "option")


def _constructor(cls: type) -> Callable[..., None] | None:
    """Return the `__init__` that the author or a dataclass defines; None if it is inherited from a library."""
    owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
    foreign = owner in (object, typing.Generic, typing.Protocol) or owner.__module__.partition(".")[0] == "torch"
    return None if foreign else vars(owner)["__init__"]


def _hints(cls: type, init: Callable[..., None], where: str) -> Mapping[str, Any]:
    """Return the annotations of the parameters; for a dataclass those of the class, since inherited annotations fail on
    `__init__`.
    """
    made = dataclasses.is_dataclass(cls) and {f.name for f in dataclasses.fields(cls) if f.init} == {
        *list(inspect.signature(init).parameters)[1:]
    }
    try:
        return get_type_hints(cls if made else init, include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        message = f"the annotations of {where} cannot be resolved: {error}"
        raise _refuse(message, "import their names at run time, not type checking") from error


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a dataclass that a `default_factory` makes."""
    if not dataclasses.is_dataclass(cls):
        return {}
    factories = {f.name: f.default_factory for f in dataclasses.fields(cls)}
    return {name: make() for name, make in factories.items() if make is not dataclasses.MISSING}


def _require_schema(parameter: Parameter, where: str) -> None:
    try:
        _ = parameter.adapter
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        message = f"the parameter {parameter.name} of {where} has a type that recipes cannot contain: "
        fix = "use numbers, texts, literals, tuples of them, or a component"
        raise _refuse(message + str(parameter.annotation), fix) from error


def _unmarked(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """Return (X, True) for the annotation X | None, else (annotation, False)."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    args = [arg for arg in get_args(annotation) if arg is not type(None)]
    return (args[0], True) if len(args) == 1 else (annotation, False)


def _marked(annotation: Any) -> tuple[ComponentField | None, Role]:
    """Return the `ComponentField` in the annotation of a field, and its role: one, a list or a mapping."""
    at: int
    role: Role
    roles: dict[Any, tuple[int, Role]] = {tuple: (0, "components"), dict: (1, "named components")}
    at, role = roles.get(get_origin(annotation), (-1, "component"))
    item = annotation if at < 0 else get_args(annotation)[at]
    marks = [mark for mark in getattr(item, "__metadata__", ()) if isinstance(mark, ComponentField)]
    return (marks[0] if marks else None), role


def _section(annotation: Any) -> tuple[type[Config], Role] | None:
    many = get_origin(annotation) is tuple
    item = get_args(annotation)[0] if many else annotation
    if isinstance(item, type) and issubclass(item, Config):
        return item, "sections" if many else "section"
    return None


def _refuse(message: str, fix: str) -> PluginError:
    return PluginError(message, code="DK250", fix=fix)
