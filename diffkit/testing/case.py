"""Cases for laws: components built from their default options, with injected dependencies."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffkit.codec import Codec, Identity
from diffkit.data import ConditionSpec
from diffkit.errors import DiffkitError
from diffkit.host import registry
from diffkit.network import CONCAT, Shape
from diffkit.noise import key
from diffkit.recipe.assembly import build
from diffkit.recipe.construct import scope_inside
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
        options = ", ".join(f"{name}={shown(value)}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name

    @property
    def exemptions(self) -> Mapping[str, str]:
        """The `law_exemptions` of the component, laws that do not apply to it, with reasons; empty if malformed."""
        found: object = getattr(self.component, "law_exemptions", {})
        return found if isinstance(found, Mapping) else {}

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


def shown(value: object, most: int = 200) -> str:
    """Return the text of a value, shortened to `most` characters; `str` of a class of a plugin may raise an error."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - the text is computed by code of the plugin
        text = f"({type(value).__name__}: its text cannot be shown)"
    return text if len(text) <= most else f"{text[:most]}..."


class CannotBuild(Exception):  # noqa: N818 - a verdict
    """Raised for a component with options that have no default; the message lists them."""


INJECTED = frozenset({"data", "schedule", "parameterization", "codec", "condition", "shape"})
"""Kinds that are injected even if the component has a default; other kinds keep their defaults."""
IMAGES = Shape(3, 3, (8, 8), 4)
PLAIN_IMAGES = Shape(3, 3, (8, 8))
VECTORS = Shape(2, 2, (), 4)
PLAIN_VECTORS = Shape(2, 2)
CONDITIONS = (
    ConditionSpec((), "long", 5),
    ConditionSpec((24,), "text"),
    ConditionSpec((3,)),
    ConditionSpec((2, 4, 4), "uint8"),
)
NETWORK_SHAPES = (IMAGES, PLAIN_IMAGES, VECTORS, PLAIN_VECTORS)
NESTED = {
    "sampler": "ancestral",
    "objective": "simple",
    "network": "mlp",
    "guidance": "clip",
    "grid": "trailing",
    "times": "uniform",
    "weighting": "snr",
    "metric": "frechet",
    "optimizer": "adam",
    "lr-schedule": "constant",
}
"""The component that stands for a nested one of each kind which has no default and which `law_options` does not name;
one of the kinds that contexts provide is taken from the context."""
_build: Callable[..., Any] = build
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
        shapes = (PLAIN_VECTORS,) if "data" in injected else NETWORK_SHAPES
        return [{**base, "shape": shape} for shape in shapes]
    if kind == "codec":
        return [{**base, "data": fixtures.Pictures(), "shape": IMAGES}, base]
    if kind == "reconstruction-loss":
        base["data"] = fixtures.Pictures()
    if kind == "conditioner":
        return [{**base, "data": fixtures.Pictures(), "condition": one} for one in CONDITIONS]
    if kind == "guidance":
        base["data"] = fixtures.LabelledData()
    schedules = (fixtures.discrete(), fixtures.TRIG, fixtures.EXPLODING) if "schedule" in injected else (None,)
    return [{**base, "schedule": schedule or base["schedule"]} for schedule in schedules]


def build_cases(
    kind: str, name: str, cls: type, *, deep: bool = False, seed: int = 0, options: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Case]:
    """Build a class with its default options and with each entry of its `law_options`, in every context it accepts.

    The attribute `law_base` of a class replaces defaults that are too large to test on a CPU. Both may name nested
    components, as a recipe does: `{"inner": "ddim"}` or `{"inner": {"name": "ddim", "eta": 1.0}}`. A class that needs
    more than options, such as files, has a class method `law_example(folder: Path)` that returns an instance; that of a
    network may also take a `shape`.

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
        yield from _examples(Case(kind, name, None, {"example": "law_example"}, deep=deep, seed=seed), example)
        return
    files = EXAMPLES.get(f"{cls.__module__}:{cls.__qualname__}")
    if files is not None:
        sets = [files(_folder())]
    parameters = component_parameters(cls, kind)
    for chosen in sets:
        missing = [p.name for p in parameters if p.required and p.name not in chosen and p.role != "component"]
        if missing:
            if chosen or len(sets) == 1:
                raise CannotBuild(f"needs {', '.join(missing)}; declare law_options or law_example on the class")
            continue
        yield from _instances(Case(kind, name, None, chosen, deep=deep, seed=seed), cls, parameters)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return _ready(
            cls(**_arguments(cls, component_parameters(cls, case.kind), {**case.options, **options}, given)), given
        )


def _ready(component: Any, context: Mapping[str, Any]) -> Any:
    """Return a component as a run uses it: a codec has learned from the training examples."""
    if isinstance(component, Codec):
        component.fit(context["data"])
    return component


def _injected(parameters: Sequence[Parameter]) -> dict[str, str]:
    """Return the kinds of the parameters that receive a dependency, by name."""
    return {
        p.name: p.target for p in parameters if p.role == "injected" and (p.default is REQUIRED or p.target in INJECTED)
    }


def _instances(plan: Case, cls: type, parameters: Sequence[Parameter]) -> Iterator[Case]:
    injected, failures, built = _injected(parameters), [], 0
    nested = [p for p in parameters if p.role == "component" and p.required]
    needed = [*injected.values(), *(p.target for p in nested if p.name not in plan.options)]
    for context in _contexts(plan.kind, needed):
        unknown = [target for target in needed if target not in context and target not in NESTED]
        if unknown:
            raise CannotBuild(
                f"needs {', '.join(unknown)}, which laws do not provide; declare law_example on the class"
            )
        if plan.kind == "network" and not built:
            context = {**context, "shape": _with_conditions(cls, context["shape"])}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(plan.seed)
                component = _ready(cls(**_arguments(cls, parameters, plan.options, context)), context)
        except (ValueError, TypeError, DiffkitError) as error:
            if not injected and not nested:
                raise
            failures.append(error)
            continue
        built += 1
        yield Case(plan.kind, plan.name, component, plan.options, context, plan.deep, plan.seed)
        if built == MOST_CASES.get(plan.kind):
            return
    if not built:
        raise failures[0]


def _with_conditions(cls: Any, shape: Shape) -> Shape:
    """Add a text, channels beside x and a vector to a shape, if the `forward` of a network names them or takes any."""
    found = inspect.signature(cls.forward).parameters.values()
    names = {one.name for one in found}
    conditions: dict[str, tuple[int, ...]] = {"text": (5, 6)} if "text" in names else {}
    if conditions and any(one.kind is one.VAR_KEYWORD for one in found):
        conditions["vector"] = (3,)
    return replace(shape, conditions=conditions, extra_channels=2 if CONCAT in names else 0)


def _arguments(
    cls: type, parameters: Sequence[Parameter], options: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a constructor.

    Args:
        cls: the class.
        parameters: the parameters of its constructor.
        options: the options, which may name nested components.
        context: the dependencies to inject, by kind.

    Returns:
        The options, with dependencies injected and nested components built.
    """
    inside = scope_inside(cls, context)
    given = {name: _stand_in(target, context) for name, target in _injected(parameters).items()}
    nested = [p for p in parameters if p.role in ("component", "components") and (p.required or p.name in options)]
    return {**given, **options, **{p.name: _nested(p, options.get(p.name), inside) for p in nested}}


def _nested(parameter: Parameter, value: Any, context: Mapping[str, Any]) -> Any:
    """Build a nested component, or several, from a name or a mapping as in a recipe; an instance is returned as it is.

    Args:
        parameter: the parameter of the component that contains it.
        value: the option; None for the component that stands for its kind.
        context: the dependencies to inject.

    Returns:
        The argument of the constructor.
    """
    if parameter.role == "components" and isinstance(value, list | tuple):
        return tuple(_nested(replace(parameter, role="component"), one, context) for one in value)
    if value is None and parameter.required:
        return _stand_in(parameter.target, context)
    if not isinstance(value, str | Mapping):
        return value
    options: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
    name = str(options.pop("name"))
    inner = component_parameters(registry().find(parameter.target, name).load(), parameter.target)
    return _build(
        parameter.target, name, **{n: _stand_in(of, context) for n, of in _injected(inner).items()}, **options
    )


def _stand_in(kind: str, context: Mapping[str, Any]) -> Any:
    """Return the object of a kind in the context, or else the component that stands for the kind."""
    if kind in context:
        return context[kind]
    inner = component_parameters(registry().find(kind, NESTED[kind]).load(), kind)
    return _build(kind, NESTED[kind], **{name: _stand_in(of, context) for name, of in _injected(inner).items()})


def _examples(plan: Case, example: Callable[..., Any]) -> Iterator[Case]:
    """Build what `law_example` returns; a network for each shape that it takes, or for the first shape that it fits."""
    takes_shape = "shape" in inspect.signature(example).parameters
    built = 0
    for shape in NETWORK_SHAPES if takes_shape else (None,):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(plan.seed)
                component = example(_folder(), **({"shape": shape} if takes_shape else {}))
        except (ValueError, TypeError, DiffkitError):
            if not takes_shape or (shape is PLAIN_VECTORS and not built):
                raise
            continue
        found = shape or (_shape_of(component) if plan.kind == "network" else None)
        yield replace(plan, component=component, context={"shape": found} if found else {})
        built += 1
        if built == MOST_CASES.get(plan.kind):
            return


def _shape_of(network: Any) -> Shape | None:
    """Return the attribute `shape` of a network, or else the first shape that it fits; None if there is none."""
    own = getattr(network, "shape", None)
    shapes = NETWORK_SHAPES if not isinstance(own, Shape) else (own,)
    return next((shape for shape in shapes if shape is own or _fits(network, shape)), None)


def _fits(network: Any, shape: Shape) -> bool:
    label = {} if shape.classes is None else {"label": torch.tensor([0, shape.classes])}
    try:
        with torch.no_grad():
            y = network(torch.zeros(2, shape.in_channels, *shape.size), torch.tensor([3.0, 250.0]), **label)
    except Exception:  # noqa: BLE001 - a network may refuse a shape by any error
        return False
    return tuple(y.shape) == (2, shape.out_channels, *shape.size)


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
