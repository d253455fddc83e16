"""What the laws are applied to: components built from their defaults, with what they need injected."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffkit.codec import Identity
from diffkit.errors import DiffkitError
from diffkit.network import Shape
from diffkit.noise import key
from diffkit.recipe.signature import REQUIRED, component_parameters

from . import families
from .examples import EXAMPLES


@dataclass(frozen=True)
class Subject:
    """One component under test.

    `options` are those that differ from the defaults, `context` what was injected by kind, `exemptions` the laws
    that its author excuses it from, with reasons. `deep` asks for more cases.
    """

    kind: str
    name: str
    component: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    deep: bool = False
    seed: int = 0

    @property
    def label(self) -> str:
        """The name with its options: "ancestral(variance=large)"."""
        told = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({told})" if told else self.name

    @property
    def exemptions(self) -> Mapping[str, str]:
        """Law names and reasons, from the `law_exemptions` of the component."""
        found: Mapping[str, str] = getattr(self.component, "law_exemptions", {})
        return found

    def generator(self, *parts: object) -> torch.Generator:
        """A generator that depends on the seed and `parts` alone."""
        return torch.Generator().manual_seed(key(self.seed, *parts))

    def normal(self, *shape: int, stream: str = "x", dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Standard normal numbers of a named stream."""
        return torch.randn(*shape, generator=self.generator(stream, *shape), dtype=torch.float64).to(dtype)


PROVIDED = frozenset({"data", "schedule", "parameterization", "codec", "shape"})
"""The kinds that the laws inject; other kinds with a default keep it."""


class Unbuildable(Exception):  # noqa: N818 - a verdict
    """The component cannot be built without options that only its user knows; the message says which."""


IMAGES = Shape(3, 3, (8, 8), 4)
PLAIN_IMAGES = Shape(3, 3, (8, 8))
VECTORS = Shape(2, 2, (), 4)
PLAIN_VECTORS = Shape(2, 2)
NETWORK_VARIANTS = 2
"""Networks are built for the first two shapes that they take: with classes and without."""


def _contexts(kind: str, injected: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """What may be injected. A component that asks for a schedule is tried on every family of them."""
    base: dict[str, Any] = {
        "data": families.GaussianData(),
        "schedule": families.discrete(),
        "parameterization": families.EPS,
        "codec": Identity(),
        "shape": VECTORS,
    }
    if kind == "network":
        shapes = (PLAIN_VECTORS,) if "data" in injected else (IMAGES, PLAIN_IMAGES, VECTORS, PLAIN_VECTORS)
        return [{**base, "shape": shape} for shape in shapes]
    schedules = (families.discrete(), families.TRIG, families.EXPLODING) if "schedule" in injected else (None,)
    return [{**base, "schedule": schedule or base["schedule"]} for schedule in schedules]


def subjects(
    kind: str, name: str, cls: type, *, deep: bool = False, seed: int = 0, options: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Subject]:
    """The default instance of `cls` and one for each entry of its `law_options`, in every context that it takes.

    `law_base` replaces defaults that are too large to test on a CPU, in all of them.
    A class that needs more than options (files) makes its own example in `law_example(folder: Path)`.
    Raises Unbuildable where there is neither.
    """
    base: Mapping[str, Any] = getattr(cls, "law_base", {})
    sets: list[Mapping[str, Any]] = [{**base, **more} for more in ({}, *getattr(cls, "law_options", ()), *options)]
    example = getattr(cls, "law_example", None)
    if example is not None:
        yield Subject(kind, name, example(_folder()), {"example": "law_example"}, deep=deep, seed=seed)
        return
    if (kind, name) in EXAMPLES:
        sets = [EXAMPLES[kind, name](_folder())]
    parameters = component_parameters(cls, kind)
    injected = {
        p.name: p.target for p in parameters if p.role == "injected" and (p.default is REQUIRED or p.target in PROVIDED)
    }
    for chosen in sets:
        missing = [p.name for p in parameters if p.required and p.default is REQUIRED and p.name not in chosen]
        if missing:
            if chosen or len(sets) == 1:
                raise Unbuildable(f"needs {', '.join(missing)}; declare law_options or law_example on the class")
            continue
        yield from _instances(Subject(kind, name, None, chosen, deep=deep, seed=seed), cls, injected)


def _instances(plan: Subject, cls: type, injected: Mapping[str, str]) -> Iterator[Subject]:
    failures: list[Exception] = []
    made = 0
    for context in _contexts(plan.kind, injected.values()):
        unknown = [target for target in injected.values() if target not in context]
        if unknown:
            raise Unbuildable(f"asks for {', '.join(unknown)}, which the laws do not provide")
        given = {name: context[target] for name, target in injected.items()}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(plan.seed)
                component = cls(**given, **plan.options)
        except (ValueError, TypeError, DiffkitError) as error:
            if not injected:
                raise
            failures.append(error)
            continue
        made += 1
        yield Subject(plan.kind, plan.name, component, plan.options, context, plan.deep, plan.seed)
        if plan.kind == "network" and made == NETWORK_VARIANTS:
            return
    if not made:
        raise failures[0]


def _folder() -> Path:
    """An empty folder that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="diffkit-law-")
    _FOLDERS.append(folder)
    return Path(folder.name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
