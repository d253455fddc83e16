"""The base of every configuration model, and how a model names a component. Imports no torch.

A recipe is a tree of `Config` models. A field that holds a component is annotated with its kind:
`sampler: Annotated[ComponentSpec, ComponentField("sampler", "ancestral")]`. A model that has a field `component` shares
its mapping with the options of that component: `data: {name: digits, condition_dropout: 0.1}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Interval = Annotated[int, Field(ge=0, le=2**40)]
"""A number of steps; 0 turns the action off."""
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class PathMark:
    """Annotation of an option that is a path: a relative path starts at the folder of the recipe file, or, if nothing
    is there, at the working directory. Elsewhere than in a file it starts at the working directory. URLs stay as they
    are.
    """


FilePath = Annotated[str, PathMark()]
"""The type of an option that is the path of a file or folder, such as `data.path`. A component receives it absolute."""


@dataclass(frozen=True)
class ComponentField:
    """Annotation of a field that holds a component of `kind`; `default` is the name of the component if the recipe
    gives none.
    """

    kind: str
    default: str | None = None


@dataclass(frozen=True)
class ComponentSpec:
    """A component that a recipe names: its kind, its name, its options and the plugin that registers it.

    `options` holds only the options that the recipe gives, validated; nested components are `ComponentSpec` as well.
    `label` is the name and version of the plugin for listings.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    plugin: str = ""
    label: str = field(default="", compare=False)


class Config(BaseModel):
    """Base of the configuration models: frozen, strict, without unknown fields, inf or nan.

    `shorthand` is the field that a bare value sets: `ema: 0.999` is `ema: {decay: 0.999}`. `last` are the fields that
    stand behind those of subclasses.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    shorthand: ClassVar[str | None] = None
    last: ClassVar[tuple[str, ...]] = ()
