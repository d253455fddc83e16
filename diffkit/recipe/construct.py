"""From a chosen component to the object: its options, its nested components, and what is injected into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import PluginError
from ..host import registry
from .signature import REQUIRED, Parameter, component_parameters
from .spec import Chosen

STAGES = (
    *("data", "augmentation", "codec", "schedule", "parameterization", "shape", "network"),
    *("weighting", "times", "objective", "sampler", "grid", "guidance", "metric", "tracker"),
)
"""The order in which the parts of a recipe are built; a component may ask for those before it."""


def parameters_of(chosen: Chosen) -> tuple[type, tuple[Parameter, ...]]:
    """The class behind a chosen component, and what it may be told."""
    cls = registry().find(chosen.kind, f"{chosen.plugin}/{chosen.name}" if chosen.plugin else chosen.name).load()
    return cls, component_parameters(cls, chosen.kind)


def construct(chosen: Chosen, scope: Mapping[str, object], objects: Mapping[str, object] | None = None) -> Any:
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


def unavailable(chosen: Chosen, kind: str) -> PluginError:
    """A component asks for something that is not built when its turn comes."""
    before = STAGES[: STAGES.index(chosen.kind)] if chosen.kind in STAGES else ()
    return PluginError(
        f"{chosen.kind} {chosen.name} asks for the {kind} of the recipe, which there is none of",
        code="DK251",
        choices=before,
        fix="give the parameter a default, or ask for what is built before",
    )


def _materialise(value: Any, scope: Mapping[str, object]) -> Any:
    if isinstance(value, Chosen):
        return construct(value, scope)
    if isinstance(value, tuple) and any(isinstance(item, Chosen) for item in value):
        return tuple(_materialise(item, scope) for item in value)
    return value
