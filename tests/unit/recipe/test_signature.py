"""Schemas derived from constructors, and the traps of that derivation (design.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from torch import nn

from diffkit.errors import PluginError
from diffkit.grid import Grid
from diffkit.host import registry
from diffkit.network import Network, Shape
from diffkit.parameterization import Parameterization
from diffkit.recipe.signature import REQUIRED, component_parameters, kind_of, section_parameters
from diffkit.recipe.spec import DiffusionRecipe, Sample
from diffkit.schedule import Schedule
from diffkit.train.config import TrainConfig


def parameters(cls: type, kind: str = "grid") -> dict[str, Any]:
    return {p.name: p for p in component_parameters(cls, kind)}


@dataclass(frozen=True)
class Base:
    """Its postponed annotations are inherited by classes of other modules."""

    share: Annotated[float, Field(gt=0)] = 0.5
    levels: tuple[int, ...] = field(default_factory=lambda: (1, 2))


@dataclass(frozen=True)
class Many(Base):
    schedule: Schedule = None  # type: ignore[assignment]
    shape: Shape | None = None
    inner: Parameterization = None  # type: ignore[assignment]
    other: Schedule | None = None
    several: tuple[Grid, ...] = ()
    mode: Literal["a", "b"] = "a"


def test_roles() -> None:
    found = parameters(Many)
    assert {name: p.role for name, p in found.items()} == {
        "share": "option",
        "levels": "option",
        "schedule": "injected",
        "shape": "injected",
        "inner": "component",
        "other": "component",
        "several": "components",
        "mode": "option",
    }
    assert found["other"].optional
    assert found["inner"].target == "parameterization"
    assert found["levels"].default == (1, 2)


def test_a_parameter_is_injected_by_name_and_annotation_only() -> None:
    class Word:
        def __init__(self, schedule: str, network: Network, shape: int = 2) -> None:
            pass

    assert {name: p.role for name, p in parameters(Word).items()} == {
        "schedule": "option",
        "network": "injected",
        "shape": "option",
    }


def test_required_and_defaults_of_a_plain_class() -> None:
    class Plain:
        def __init__(self, a: int, *, b: float = 1.0) -> None:
            pass

    found = parameters(Plain)
    assert found["a"].default is REQUIRED
    assert found["a"].required
    assert (found["b"].default, found["b"].required) == (1.0, False)


def test_classes_without_a_constructor_of_their_own_take_nothing() -> None:
    class Module(nn.Module):
        pass

    assert parameters(Module) == {}
    assert parameters(type("Empty", (), {})) == {}


class Postponed:
    def __init__(self, level: Annotated[int, Field(ge=1)]) -> None:
        self.level = level


def test_options_are_strict() -> None:
    option = parameters(Postponed)["level"].adapter
    assert option.validate_json("3") == 3
    for text in ('"3"', "3.0", "true", "0", "null"):
        with pytest.raises(ValueError):
            option.validate_json(text)


def _kwargs() -> type:
    class Kwargs:
        def __init__(self, **options: int) -> None:
            pass

    return Kwargs


def _args() -> type:
    class Args:
        def __init__(self, *options: int) -> None:
            pass

    return Args


def _named() -> type:
    class Named:
        def __init__(self, name: str) -> None:
            pass

    return Named


def _bare() -> type:
    class Bare:
        def __init__(self, level) -> None:  # type: ignore[no-untyped-def]
            pass

    return Bare


def _own_kind() -> type:
    class OwnKind:
        def __init__(self, grid: Grid) -> None:
            pass

    return OwnKind


def _odd() -> type:
    class Odd:
        def __init__(self, thing: nn.Linear) -> None:
            pass

    return Odd


def _unresolved() -> type:
    class Unresolved:
        def __init__(self, level: NotThere) -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

    return Unresolved


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_kwargs, "which a recipe cannot give"),
        (_args, "which a recipe cannot give"),
        (_named, "a parameter `name`"),
        (_bare, "not annotated"),
        (_own_kind, "requires a `grid` and is a grid itself"),
        (_odd, "a type that recipes cannot contain"),
        (_unresolved, "cannot be resolved"),
    ],
)
def test_constructors_that_recipes_cannot_serve(make: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        component_parameters(make(), "grid")
    assert (caught.value.code, caught.value.exit_code) == ("DK250", 4)


def test_kinds_are_known_by_their_base_class() -> None:
    assert kind_of(Schedule) == "schedule"
    assert kind_of(Shape) == "shape"
    assert kind_of(int) is None
    assert kind_of(tuple[int, ...]) is None


def test_every_registered_component_can_be_configured() -> None:
    refused = {"kwargs", "named", "unannotated", "own"}
    for found in registry().entries():
        if found.name not in refused:
            component_parameters(found.load(), found.kind)


def test_sections() -> None:
    roles = {p.name: p.role for p in section_parameters(DiffusionRecipe)}
    assert roles["data"] == "section"
    assert roles["schedule"] == "component"
    assert roles["trackers"] == "components"
    assert roles["seed"] == "option"
    assert {p.name: p.default for p in section_parameters(Sample)}["sampler"] == "ancestral"
    assert {p.name: p.role for p in section_parameters(TrainConfig)}["ema"] == "sections"
