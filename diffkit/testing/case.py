"""Cases for laws: components built from their default options, with injected dependencies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffkit.codec import Identity
from diffkit.errors import DiffkitError
from diffkit.network import Shape
from diffkit.noise import key
from diffkit.recipe.signature import REQUIRED, Parameter, component_parameters

from . import fixtures


@dataclass(frozen=True)
class Case:
    """One component under test.

    `options` are the options that differ from the defaults, `context` the injected dependencies by kind. `deep`
    requests more inputs for every law, `seed` determines the random ones.
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
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name

    @property
    def exemptions(self) -> Mapping[str, str]:
        """The `law_exemptions` of the component: laws that do not apply to it, with reasons."""
        found: Mapping[str, str] = getattr(self.component, "law_exemptions", {})
        return found

    def generator(self, *parts: str | int) -> torch.Generator:
        """Return a generator that depends on the seed and `parts` only."""
        return torch.Generator().manual_seed(key(self.seed, *parts))

    def normal(self, *shape: int, stream: str = "x", dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Return standard normal numbers, the same for each call with the same shape and stream.

        Args:
            shape: the shape of the tensor.
            stream: the name of the stream; two streams are independent.
            dtype: the type; numbers are drawn in float64 and rounded.

        Returns:
            A tensor of this shape on the CPU.
        """
        return torch.randn(*shape, generator=self.generator(stream, *shape), dtype=torch.float64).to(dtype)


class CannotBuild(Exception):  # noqa: N818 - a verdict
    """Raised for a component with options that have no default; the message lists them."""


INJECTED = frozenset({"data", "schedule", "parameterization", "codec", "shape"})
"""Kinds that are injected even if the component has a default; other kinds keep their defaults."""
IMAGES = Shape(3, 3, (8, 8), 4)
PLAIN_IMAGES = Shape(3, 3, (8, 8))
VECTORS = Shape(2, 2, (), 4)
PLAIN_VECTORS = Shape(2, 2)
MOST_CASES = {"network": 2, "codec": 1}
"""Networks are built for the first two of these shapes that they accept, with classes and without; codecs for one."""


def _contexts(kind: str, injected: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return the dependencies to inject. A component that takes a schedule is tested with one of each family."""
    base: dict[str, Any] = {
        "data": fixtures.GaussianData(),
        "schedule": fixtures.discrete(),
        "parameterization": fixtures.EPS,
        "codec": Identity(),
        "shape": VECTORS,
    }
    if kind == "network":
        shapes = (PLAIN_VECTORS,) if "data" in injected else (IMAGES, PLAIN_IMAGES, VECTORS, PLAIN_VECTORS)
        return [{**base, "shape": shape} for shape in shapes]
    if kind == "codec":
        return [{**base, "data": fixtures.Pictures(), "shape": IMAGES}, base]
    schedules = (fixtures.discrete(), fixtures.TRIG, fixtures.EXPLODING) if "schedule" in injected else (None,)
    return [{**base, "schedule": schedule or base["schedule"]} for schedule in schedules]


def build_cases(
    kind: str, name: str, cls: type, *, deep: bool = False, seed: int = 0, options: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Case]:
    """Build a class with its default options and with each entry of its `law_options`, in every context it accepts.

    The attribute `law_base` of a class replaces defaults that are too large to test on a CPU. A class that needs more
    than options, such as files, has a class method `law_example(folder: Path)` that returns an instance.

    Args:
        kind: the kind of component.
        name: the name of the component.
        cls: the class of the component.
        deep: whether laws try more inputs.
        seed: the seed of random inputs.
        options: options to test besides the defaults and `law_options`.

    Yields:
        One case for each set of options and each context.

    Raises:
        CannotBuild: options without a default are missing, or a kind is injected that laws do not provide.
    """
    base: Mapping[str, Any] = getattr(cls, "law_base", {})
    sets: list[Mapping[str, Any]] = [{**base, **more} for more in ({}, *getattr(cls, "law_options", ()), *options)]
    example = getattr(cls, "law_example", None)
    if example is not None:
        yield Case(kind, name, example(_folder()), {"example": "law_example"}, deep=deep, seed=seed)
        return
    files = EXAMPLES.get(f"{cls.__module__}:{cls.__qualname__}")
    if files is not None:
        sets = [files(_folder())]
    parameters = component_parameters(cls, kind)
    injected = _injected(parameters)
    for chosen in sets:
        missing = [p.name for p in parameters if p.required and p.default is REQUIRED and p.name not in chosen]
        if missing:
            if chosen or len(sets) == 1:
                raise CannotBuild(f"needs {', '.join(missing)}; declare law_options or law_example on the class")
            continue
        yield from _instances(Case(kind, name, None, chosen, deep=deep, seed=seed), cls, injected)


def rebuilt(case: Case, context: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Return the component of a case, built again.

    Args:
        case: the case.
        context: dependencies to inject in place of those of the case, by kind.
        **options: options in place of those of the case.

    Returns:
        Another instance of its class.
    """
    cls: type = type(case.component)
    if "example" in case.options or not case.context:
        return replace(case.component, **options)
    given = {**case.context, **(context or {})}
    injected = {name: given[target] for name, target in _injected(component_parameters(cls, case.kind)).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return cls(**injected, **{**case.options, **options})


def _injected(parameters: Sequence[Parameter]) -> dict[str, str]:
    """Return the kinds of the parameters that receive a dependency, by name."""
    return {
        p.name: p.target for p in parameters if p.role == "injected" and (p.default is REQUIRED or p.target in INJECTED)
    }


def _instances(plan: Case, cls: type, injected: Mapping[str, str]) -> Iterator[Case]:
    failures: list[Exception] = []
    built = 0
    for context in _contexts(plan.kind, injected.values()):
        unknown = [target for target in injected.values() if target not in context]
        if unknown:
            raise CannotBuild(f"needs {', '.join(unknown)}, which laws do not provide")
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
        built += 1
        yield Case(plan.kind, plan.name, component, plan.options, context, plan.deep, plan.seed)
        if built == MOST_CASES.get(plan.kind):
            return
    if not built:
        raise failures[0]


def _pictures(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def _array_file(folder: Path) -> Mapping[str, Any]:
    """Write an .npz file of 40 labelled images."""
    np.savez(folder / "examples.npz", images=_pictures(40), labels=np.arange(40) % 4)
    return {"path": str(folder / "examples.npz"), "labels": "labels"}


def _image_folder(folder: Path) -> Mapping[str, Any]:
    """Write forty PNG files in two folders."""
    for i, picture in enumerate(_pictures(40)):
        place = folder / ("cats" if i % 2 else "dogs")
        place.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:02}.png")
    return {"path": str(folder), "labels": True}


EXAMPLES: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {
    "diffkit.basics.data.arrays:Arrays": _array_file,
    "diffkit.basics.data.images:Images": _image_folder,
}
"""Functions that write files for a data set of diffkit into an empty folder and return its options."""


def _folder() -> Path:
    """Return an empty folder that exists until the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="diffkit-law-")
    _FOLDERS.append(folder)
    return Path(folder.name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
