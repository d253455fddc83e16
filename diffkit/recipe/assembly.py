"""From a recipe to objects: everything built, injected and, where it is random, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..codec import Codec
from ..config import ComponentSpec
from ..data import Augmentation, Data, DataSpec
from ..denoiser import Model
from ..errors import RecipeError
from ..grid import Grid
from ..guidance import Guidance
from ..host import registry
from ..level import Level
from ..metric import Metric
from ..network import Network, Shape
from ..noise import key
from ..objective import Objective
from ..parameterization import Parameterization
from ..sampler import Sampler
from ..schedule import Schedule, default_steps, sampled
from ..tracker import Tracker
from .load import as_text
from .resolve import Resolver, construct
from .signature import component_parameters
from .spec import Recipe
from .yaml import parse


@dataclass(frozen=True, eq=False)
class Assembly:
    """The objects of a recipe. `spec` is that of what diffuses (after the codec), `shape` what the network fits."""

    recipe: Recipe
    data: Data
    augment: tuple[Augmentation, ...]
    codec: Codec
    schedule: Schedule
    parameterization: Parameterization
    network: Network
    model: Model
    objective: Objective
    sampler: Sampler[Any]
    grid: Grid
    evaluation_sampler: Sampler[Any]
    evaluation_grid: Grid
    guidance: tuple[Guidance, ...]
    metrics: tuple[Metric, ...]
    trackers: tuple[Tracker, ...]
    shape: Shape
    spec: DataSpec

    @property
    def steps(self) -> int:
        """How many steps sampling takes."""
        return self.recipe.sample.steps or default_steps(sampled(self.schedule, self.recipe.sample.start))

    def levels(self, steps: int | None = None) -> list[Level]:
        """The levels that sampling visits, noisiest first, in as many steps as the recipe or `steps` says."""
        return self.grid.levels(sampled(self.schedule, self.recipe.sample.start), steps or self.steps)

    def evaluation_levels(self) -> list[Level]:
        """The levels that the sampler of the evaluation visits."""
        part = sampled(self.schedule, self.recipe.sample.start)
        return self.evaluation_grid.levels(part, self.recipe.evaluate.steps or self.steps)


def assemble(recipe: Recipe, device: torch.device | str = "cpu") -> Assembly:
    """Build every part of `recipe`, modules on `device`. Weights are drawn on the CPU from streams of the recipe's
    seed, so they are the same on every device, and no generator of the caller moves.

    Raises DataError where the data cannot be read.
    """
    builder = _Builder(recipe.seed, torch.device(device))
    data = builder.add("data", recipe.data.component)
    codec = builder.add("codec", recipe.codec)
    schedule = builder.add("schedule", recipe.schedule)
    parameterization = builder.add("parameterization", recipe.parameterization)
    spec = codec.spec(data.spec)
    shape = Shape(spec.channels, parameterization.out_channels(spec.channels), tuple(spec.size), spec.classes)
    builder.scope["shape"] = shape
    augment = builder.all("data.augment", recipe.data.augment)
    network = builder.add("network", recipe.network)
    objective = builder.objective(recipe)
    sampler = builder.add("sampler", recipe.sample.sampler)
    grid = builder.add("grid", recipe.sample.grid)
    own = recipe.evaluate
    return Assembly(
        recipe=recipe,
        data=data,
        augment=augment,
        codec=codec,
        schedule=schedule,
        parameterization=parameterization,
        network=network,
        model=Model(network, parameterization, schedule),
        objective=objective,
        sampler=sampler,
        grid=grid,
        evaluation_sampler=builder.make("evaluate.sampler", own.sampler) if own.sampler else sampler,
        evaluation_grid=builder.make("evaluate.grid", own.grid) if own.grid else grid,
        guidance=builder.all("sample.guidance", recipe.sample.guidance),
        metrics=builder.all("evaluate.metrics", recipe.evaluate.metrics),
        trackers=builder.all("trackers", recipe.trackers),
        shape=shape,
        spec=spec,
    )


class _Builder:
    """Builds one component after the other; each may ask for those before it."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.scope: dict[str, object] = {}

    def make(self, path: str, chosen: ComponentSpec, given: dict[str, object] | None = None) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(self.seed, "initialisation", path))
            made = construct(chosen, {**self.scope, **(given or {})})
        return made.to(self.device) if isinstance(made, nn.Module) else made

    def add(self, path: str, chosen: ComponentSpec) -> Any:
        made = self.scope[chosen.kind] = self.make(path, chosen)
        return made

    def all(self, path: str, chosen: Sequence[ComponentSpec]) -> tuple[Any, ...]:
        return tuple(self.make(f"{path}.{i}", one) for i, one in enumerate(chosen))

    def objective(self, recipe: Recipe) -> Any:
        parts = {"weighting": recipe.objective.weighting, "times": recipe.objective.times}
        given = {name: self.make(f"objective.{name}", one) for name, one in parts.items() if one is not None}
        made = self.scope["objective"] = self.make("objective", recipe.objective.component, given)
        return made


def build(kind: str, name: str, **options: Any) -> Any:
    """One component under its registered name, its options validated as in a recipe.

    What a recipe would inject is given as an object (`build("parameterization", "mu", schedule=...)`), and nested
    components may be. Raises RecipeError or PluginError, as `load_recipe` does, with a single fault raised alone.
    """
    found = registry().find(kind, name)
    cls = found.load()
    bases = {p.name: p for p in component_parameters(cls, kind)}
    scope: dict[str, object] = {}
    objects: dict[str, object] = {}
    plain: dict[str, Any] = {}
    for option, value in options.items():
        parameter = bases.get(option)
        if parameter is not None and parameter.role == "injected":
            scope[parameter.target] = value
        elif parameter is not None and parameter.role in ("component", "components") and not _is_plain(value):
            objects[option] = value
        else:
            plain[option] = value
    root = parse(as_text({"name": f"{found.plugin.name}/{found.name}", **plain}), f"build({kind!r}, {name!r})")
    resolver = Resolver(root)
    chosen = resolver.alone(kind, scope, objects)
    if len(resolver.faults) == 1:
        raise resolver.faults[0]
    if chosen is None:
        raise RecipeError(f"{kind} {name} cannot be built", errors=resolver.faults)
    return construct(chosen, scope, objects)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | dict)
