"""Build the objects of a recipe, or one component by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import nn

from ..callback import Callback, Tracker
from ..classifier import Classifier
from ..codec import Codec, TrainableCodec
from ..conditioner import Conditioner, Conditions
from ..data import Augmentation, Data, DataSpec
from ..denoiser import Model
from ..errors import ArgumentError, PluginError, RecipeError, UsageError
from ..grid import Grid
from ..guidance import Guidance
from ..host import registry
from ..level import Level
from ..metric import Metric
from ..network import Network, Shape
from ..objective import Objective, Weighting
from ..optimizer import LRSchedule, Optimizer
from ..parameterization import Parameterization
from ..reconstruction import ReconstructionLoss
from ..sampler import Sampler
from ..schedule import Schedule, sampled
from ..strategy import Strategy
from ..times import Times
from .construct import CONDITIONS, INJECTED, RECORD, Trial, add_shape, condition_of, construct, follows_shape, seeded
from .load import as_text
from .resolve import Resolver
from .signature import REQUIRED, Parameter, base_class, component_parameters, kind_of
from .spec import ClassifierRecipe, CodecRecipe, DiffusionRecipe, Recipe
from .yaml import parse

SINGLE = ("data", "codec", "schedule", "parameterization", "network", "objective")
"""Kinds with exactly one component in a recipe."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The objects that the recipe of every task has. `network` is the module that is trained and averaged; `spec`
    describes the data after the codec.
    """

    recipe: Recipe
    data: Data
    augment: tuple[Augmentation, ...]
    codec: Codec
    network: nn.Module
    metrics: tuple[Metric, ...]
    optimizer: Optimizer
    lr_schedule: LRSchedule
    strategy: Strategy
    callbacks: tuple[Callback, ...]
    trackers: tuple[Tracker, ...]
    spec: DataSpec


@dataclass(frozen=True, eq=False)
class CodecParts(Parts):
    """The objects of a recipe with `task: codec`; `network` is the codec."""

    recipe: CodecRecipe
    network: TrainableCodec
    losses: tuple[ReconstructionLoss, ...]

    @property
    def named_losses(self) -> dict[str, ReconstructionLoss]:
        """The losses by name, with a number for each further one of the same name."""
        found: dict[str, ReconstructionLoss] = {}
        for spec, loss in zip(self.recipe.loss, self.losses, strict=True):
            same = sum(one.name == spec.name for one in self.recipe.loss[: len(found)])
            found[f"{spec.name}-{same + 1}" if same else spec.name] = loss
        return found


@dataclass(frozen=True, eq=False)
class ClassifierParts(Parts):
    """The objects of a recipe with `task: classifier`: `network` predicts the classes of `condition` at each position.

    `shape` describes its inputs and outputs, `times` the distribution of times in training.
    """

    recipe: ClassifierRecipe
    network: Network
    schedule: Schedule
    times: Times
    condition: str
    shape: Shape

    @property
    def classifier(self) -> Classifier:
        """The classifier of noisy examples."""
        return Classifier(self.network, self.schedule)


@dataclass(frozen=True, eq=False)
class Assembly(Parts):
    """The objects of the recipe of a diffusion; `shape` describes the inputs and outputs of the network."""

    recipe: DiffusionRecipe
    network: Network
    conditions: Conditions
    schedule: Schedule
    parameterization: Parameterization
    model: Model
    objective: Objective
    sampler: Sampler[Any]
    grid: Grid
    evaluation_sampler: Sampler[Any]
    evaluation_grid: Grid
    guidance: tuple[Guidance, ...]
    shape: Shape

    @property
    def steps(self) -> int:
        """The number of sampling steps."""
        return self.recipe.sample.steps or self.grid.all_steps(sampled(self.schedule, self.recipe.sample.start))

    def levels(self, steps: int | None = None) -> list[Level]:
        """Return the levels that sampling visits, noisiest first; if `steps` is None, the recipe gives their number."""
        return self.grid.levels(sampled(self.schedule, self.recipe.sample.start), steps or self.steps)

    def build(self, kind: Literal["guidance"], name: str, **options: Any) -> Guidance:
        """Build a component by its registered name, with what it requires taken from this assembly.

        Args:
            kind: the kind of component.
            name: its name, or `plugin/name`.
            **options: the options of the component.

        Returns:
            The component.

        Raises:
            RecipeError: an option is unknown or invalid.
        """
        own = {kind: getattr(self, kind) for kind in (*SINGLE, "shape", CONDITIONS)}
        made: Guidance = _built(kind, name, options, own)
        return made

    def evaluation_levels(self) -> list[Level]:
        """Return the levels that the sampler of the evaluation visits."""
        part = sampled(self.schedule, self.recipe.sample.start)
        return self.evaluation_grid.levels(part, self.recipe.evaluate.steps or self.steps)


def place(parts: Parts, device: torch.device | str) -> None:
    """Move the modules among the objects of a recipe to a device, as `assemble_parts` does."""
    for value in vars(parts).values():
        conditioners = tuple(value.conditioners.values()) if isinstance(value, Conditions) else ()
        for one in (*conditioners, *value) if isinstance(value, tuple) else (*conditioners, value):
            if isinstance(one, nn.Module):
                one.to(device)


def assemble(recipe: Recipe, device: torch.device | str = "cpu") -> Assembly:
    """Build every component of the recipe of a diffusion; `assemble_parts` takes a recipe of any task.

    Args:
        recipe: a recipe from `load_recipe`.
        device: the device of the modules.

    Returns:
        The objects of the recipe.

    Raises:
        DataError: if the data cannot be read.
        UsageError: if the recipe is of another task.
        ArgumentError: if `recipe` is not a Recipe.
    """
    return require_diffusion(assemble_parts(recipe, device), "the recipe")


def require_diffusion(parts: Parts, source: str) -> Assembly:
    """Return the objects of a diffusion. Raises UsageError DK124 if those of `source` are of another task."""
    if isinstance(parts, Assembly):
        return parts
    use = {
        "codec": "name it in another recipe, codec: {name: trained, run: RUN}, and sample that run",
        "classifier": "name it in the guidance of another run: guidance: {name: classifier, run: RUN}",
    }[parts.recipe.task]
    message = f"{source} trains a {parts.recipe.task}, not a diffusion: it draws no samples"
    raise UsageError(message, code="DK124", fix=use)


def assemble_parts(recipe: Recipe, device: torch.device | str = "cpu") -> Parts:
    """Build every component of a recipe.

    Objects without state are taken from the validation of the recipe; modules, trackers and objects that contain them
    are built for each assembly. Weights are drawn on the CPU from streams of the recipe's seed, so they are the same on
    every device, and no generator of the caller moves.

    Args:
        recipe: a recipe from `load_recipe`.
        device: the device of the modules.

    Returns:
        The objects of the recipe, those of its task.

    Raises:
        DataError: if the data cannot be read.
        ArgumentError: if `recipe` is not a Recipe.
    """
    if not isinstance(recipe, Recipe):
        raise ArgumentError.of("assemble: argument 1 (`recipe`)", "a Recipe", recipe, "call load_recipe first")
    scope: dict[str, Any] = {RECORD: recipe.objects[RECORD]} if RECORD in recipe.objects else {}
    built: dict[str, Any] = {}
    given = recipe.conditions if isinstance(recipe, DiffusionRecipe) else None
    conditioners: dict[str, Conditioner] | None = None if given is None else {}
    predicts = recipe.conditions if isinstance(recipe, ClassifierRecipe) else None
    for component in recipe.components:
        if follows_shape(component.spec.kind):
            add_shape(scope, conditioners, predicts)
        condition = condition_of(component.path)
        if condition is not None:
            scope["condition"] = scope["data"].spec.conditions[condition]
        if component.path not in recipe.objects:
            with seeded(recipe.seed, component.path):
                made = construct(component, scope, recipe.objects)
            built[component.path] = made.to(device) if isinstance(made, nn.Module) else made
        else:
            built[component.path] = recipe.objects[component.path]
        if component.path in INJECTED:
            scope[component.spec.kind] = built[component.path]
        if condition is not None and conditioners is not None:
            conditioners[condition] = built[component.path]

    def every(path: str) -> tuple[Any, ...]:
        return tuple(made for at, made in built.items() if at.rpartition(".")[0] == path)

    shared: dict[str, Any] = {
        "recipe": recipe,
        "data": built["data"],
        "augment": every("data.augment"),
        "codec": built["codec"],
        "metrics": every("evaluate.metrics"),
        "optimizer": built["train.optimizer"],
        "lr_schedule": built["train.lr_schedule"],
        "strategy": built["train.strategy"],
        "callbacks": every("callbacks"),
        "trackers": every("trackers"),
        "spec": built["codec"].spec(built["data"].spec),
    }
    if isinstance(recipe, CodecRecipe):
        return CodecParts(**shared, network=built["codec"], losses=every("loss"))
    schedule, network, shape = built["schedule"], built["network"], scope["shape"]
    if isinstance(recipe, ClassifierRecipe):
        more = {"times": built["times"], "condition": recipe.conditions, "shape": shape}
        return ClassifierParts(**shared, network=network, schedule=schedule, **more)
    parameterization = built["parameterization"]
    return Assembly(
        **shared,
        conditions=scope[CONDITIONS],
        schedule=schedule,
        parameterization=parameterization,
        network=network,
        model=Model(network, parameterization, schedule),
        objective=built["objective"],
        sampler=built["sample.sampler"],
        grid=built["sample.grid"],
        evaluation_sampler=built.get("evaluate.sampler", built["sample.sampler"]),
        evaluation_grid=built.get("evaluate.grid", built["sample.grid"]),
        guidance=every("sample.guidance"),
        shape=shape,
    )


@overload
def build(kind: Literal["data"], name: str, **options: Any) -> Data: ...
@overload
def build(kind: Literal["codec"], name: str, **options: Any) -> Codec: ...
@overload
def build(kind: Literal["reconstruction-loss"], name: str, **options: Any) -> ReconstructionLoss: ...
@overload
def build(kind: Literal["conditioner"], name: str, **options: Any) -> Conditioner: ...
@overload
def build(kind: Literal["schedule"], name: str, **options: Any) -> Schedule: ...
@overload
def build(kind: Literal["parameterization"], name: str, **options: Any) -> Parameterization: ...
@overload
def build(kind: Literal["augmentation"], name: str, **options: Any) -> Augmentation: ...
@overload
def build(kind: Literal["network"], name: str, **options: Any) -> Network: ...
@overload
def build(kind: Literal["weighting"], name: str, **options: Any) -> Weighting: ...
@overload
def build(kind: Literal["times"], name: str, **options: Any) -> Times: ...
@overload
def build(kind: Literal["objective"], name: str, **options: Any) -> Objective: ...
@overload
def build(kind: Literal["sampler"], name: str, **options: Any) -> Sampler[Any]: ...
@overload
def build(kind: Literal["grid"], name: str, **options: Any) -> Grid: ...
@overload
def build(kind: Literal["guidance"], name: str, **options: Any) -> Guidance: ...
@overload
def build(kind: Literal["metric"], name: str, **options: Any) -> Metric: ...
@overload
def build(kind: Literal["optimizer"], name: str, **options: Any) -> Optimizer: ...
@overload
def build(kind: Literal["lr-schedule"], name: str, **options: Any) -> LRSchedule: ...
@overload
def build(kind: Literal["strategy"], name: str, **options: Any) -> Strategy: ...
@overload
def build(kind: Literal["callback"], name: str, **options: Any) -> Callback: ...
@overload
def build(kind: Literal["tracker"], name: str, **options: Any) -> Tracker: ...
def build(kind: str, name: str, **options: Any) -> Any:
    """Build one component by its registered name, with options validated as in a recipe.

    Args:
        kind: the kind of component, such as "schedule".
        name: its name, or `plugin/name`.
        options: the options of the component. A component that a recipe injects is given as an object
            (`build("parameterization", "mu", schedule=...)`); a nested component is an object, a name or a mapping, and
            takes the objects that it requires from here too.

    Returns:
        The component; a type checker derives its base class from `kind`.

    Raises:
        RecipeError: if an option is unknown or invalid; its `errors` are all faults if there are several.
        PluginError: if the component cannot be loaded, or requires an object that is not given (DK251).
    """
    return _built(kind, name, options, {})


def _built(kind: str, name: str, options: Mapping[str, Any], scope: Mapping[str, object]) -> Any:
    """Build a component; it and its nested components take what they require from `scope`, by kind, or `options`."""
    if not isinstance(name, str):
        raise ArgumentError.of("build: argument 2 (`name`)", "the name of a component", name, "see diffkit ls")
    found = registry().find(kind, name)
    parameters = {p.name: p for p in component_parameters(found.load(), kind)}
    objects = {option: value for option, value in options.items() if _is_object(parameters.get(option), value)}
    nests = any(parameter.role in ("component", "components") for parameter in parameters.values())
    inside = {option: value for option, value in options.items() if nests and _is_injected(option, value)}
    plain = {option: value for option, value in options.items() if option not in {**objects, **inside}}
    trial = Trial()
    trial.scope.update(scope)
    trial.scope.update({option.replace("_", "-"): value for option, value in inside.items()})
    for option, value in objects.items():
        _require_class(parameters[option], value, f"{kind} {name}")
        if parameters[option].role == "injected":
            trial.scope[parameters[option].target] = value
    for parameter in parameters.values():
        absent = parameter.name not in objects and parameter.target not in scope
        if parameter.role == "injected" and parameter.default is REQUIRED and absent:
            message = f"{kind} {name} requires a `{parameter.target}`, but none is given"
            raise PluginError(message, code="DK251", fix=f"pass {parameter.name}=...")
    for option, value in plain.items():
        if not _is_plain(value):
            message = f"{kind} {name}: `{option}` must be a number, text, list or mapping, got {type(value).__name__}"
            raise UsageError(message, code="DK010")
    root = parse(as_text({"name": f"{found.plugin.name}/{found.name}", **plain}), f"build({kind!r}, {name!r})")
    resolver = Resolver(root)
    component = resolver.alone(kind, objects)
    made = None if component is None else trial.attempt(component)
    faults = [*resolver.faults, *trial.faults]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RecipeError(f"{kind} {name} cannot be built", errors=faults)
    if trial.data_error is not None:
        raise trial.data_error
    return made


def _is_object(parameter: Parameter | None, value: object) -> bool:
    """Return whether an argument is an object that the constructor takes as it is, not a value of a recipe."""
    if parameter is None or parameter.role not in ("injected", "component", "components"):
        return False
    items = value if parameter.role == "components" and isinstance(value, list | tuple) else [value]
    return parameter.role == "injected" or not all(isinstance(item, str | Mapping | None) for item in items)


def _is_injected(option: str, value: object) -> bool:
    """Return whether an argument is an object that a recipe passes to constructors under this name."""
    return any(kind_of(cls) == option.replace("_", "-") for cls in type(value).__mro__)


def _require_class(parameter: Parameter, value: object, component: str) -> None:
    """Raise UsageError unless an object is of the class that the constructor takes."""
    base, many = base_class(parameter), parameter.role == "components"
    items = value if many and isinstance(value, list | tuple) else [value]
    wrong = [item for item in items if not isinstance(item, base) and not (item is None and parameter.optional)]
    if wrong:
        wanted = f"a list of {base.__name__}" if many else f"a {base.__name__}"
        message = f"{component}: argument `{parameter.name}` must be {wanted}, got {type(wrong[0]).__name__}"
        raise UsageError(message, code="DK010")


def _is_plain(value: object) -> bool:
    """Return whether a value can be written in a recipe."""
    if isinstance(value, list | tuple | Mapping):
        return all(_is_plain(item) for item in (value.values() if isinstance(value, Mapping) else value))
    return value is None or isinstance(value, str | bool | int | float | os.PathLike)
