"""The sections of a recipe, as frozen pydantic models; the section `train` is `diffkit.train.config.TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from ..config import ComponentField, ComponentSpec, Config, Count, Fraction, Name
from ..errors import DataError, RecipeError
from ..train.config import TrainConfig
from .signature import Resolved
from .yaml import Node

Task = Literal["diffusion", "codec", "classifier"]
Given = str | int | float | tuple[str | int | float, ...] | tuple[tuple[int | float, ...], ...]
"""Conditions of samples: a class by name or number, a text, a number or vector; or a list of these."""
Steps = Annotated[int, Field(ge=1, le=100_000)]
"""A number of sampling steps."""


class Data(Config):
    """The data set and the augmentations of its training examples. `condition_dropout`: share of examples whose
    conditions are replaced by their null, which classifier-free guidance needs: one number for every condition, each
    independent; numbers by name; or `{joint: 0.1}`, all conditions of an example at once."""

    component: Annotated[ComponentSpec, ComponentField("data")]
    augment: tuple[Annotated[ComponentSpec, ComponentField("augmentation")], ...] = ()
    condition_dropout: Fraction | dict[str, Fraction] = 0.0

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.component.name


class Objective(Config):
    """The loss = times x weighting x distance; None for times or weighting is the default of the objective."""

    component: Annotated[ComponentSpec, ComponentField("objective", "simple")]
    weighting: Annotated[ComponentSpec, ComponentField("weighting")] | None = None
    times: Annotated[ComponentSpec, ComponentField("times")] | None = None

    @property
    def name(self) -> str:
        """The name of the objective."""
        return self.component.name


class Sample(Config):
    """The settings of sampling. `steps` None: every step of a discrete schedule, else 100. `start`: the time to start
    from, for a sampler that cannot start at the end of the schedule. `labels`, by number or name, and `conditions`, by
    the name of the condition, are repeated until `count`. If some are given, the other conditions are null; if none is,
    every class has its turn, and further conditions are those of held-out examples.

    `start_scale`: sampling starts from `sigma` times normal noise z, sigma that of the first level, or at `unit` scale:
    from z itself (times the scale of the level if it is not 1), so that the first state has too much noise by the share
    alpha^2 of its variance. `network_time`: the network receives the `exact` time of a level, or the nearest whole one
    (`rounded`); the level stays exact. `preset: diffusers`: the grid and these two are those of diffusers for the
    sampler, as far as the recipe does not state them. `precision`: type in which the network computes and holds its
    weights; the state of the sampler and the codec keep theirs. `offload`: network, conditioners and codec lie in the
    memory of the CPU, and each is moved to the device while it computes.
    """

    sampler: Annotated[ComponentSpec, ComponentField("sampler", "ancestral")]
    grid: Annotated[ComponentSpec, ComponentField("grid", "trailing")]
    steps: Steps | None = None
    start: Annotated[float, Field(gt=0)] | None = None
    start_scale: Literal["sigma", "unit"] = "sigma"
    network_time: Literal["exact", "rounded"] = "exact"
    preset: Name | None = None
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    offload: bool = False
    count: Count = 64
    labels: tuple[Annotated[int, Field(ge=0)] | str, ...] | None = None
    conditions: dict[str, Given] = Field(default_factory=dict)
    guidance: tuple[Annotated[ComponentSpec, ComponentField("guidance")], ...] = ()
    batch_size: Count = 64
    allow_mismatch: bool = False


class Measures(Config):
    """Metrics of `count` examples (None: `sample.count`, or all held-out examples), `batch_size` at a time."""

    shorthand: ClassVar[str | None] = "metrics"
    last: ClassVar[tuple[str, ...]] = ("count", "batch_size")
    metrics: tuple[Annotated[ComponentSpec, ComponentField("metric")], ...] = ()
    count: Count | None = None
    batch_size: Count | None = None


class Evaluate(Measures):
    """Metrics of `count` samples (None: `sample.count`).

    `sampler`, `grid` and `steps` are those of `sample` if they are not given. So the samples can use the full chain and
    the metrics a few steps.
    """

    sampler: Annotated[ComponentSpec, ComponentField("sampler")] | None = None
    grid: Annotated[ComponentSpec, ComponentField("grid")] | None = None
    steps: Steps | None = None


class Recipe(Config):
    """A whole recipe whose values are all valid; `load_recipe` makes it. These are the keys of every task."""

    last: ClassVar[tuple[str, ...]] = ("train", "sample", "evaluate", "callbacks", "trackers")
    name: Name
    task: Task = "diffusion"
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    requires: dict[str, str] = Field(default_factory=dict)
    data: Data
    codec: Annotated[ComponentSpec, ComponentField("codec", "identity")]
    train: TrainConfig
    evaluate: Measures = Measures()
    callbacks: tuple[Annotated[ComponentSpec, ComponentField("callback")], ...] = ()
    trackers: tuple[Annotated[ComponentSpec, ComponentField("tracker")], ...] = ()

    _text: str = PrivateAttr(default="")
    _root: Node | None = PrivateAttr(default=None)
    _warnings: tuple[RecipeError, ...] = PrivateAttr(default=())
    _data_error: DataError | None = PrivateAttr(default=None)
    _components: tuple[Resolved, ...] = PrivateAttr(default=())
    _objects: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def text(self) -> str:
        """The recipe as it was given, without overrides."""
        return self._text

    @property
    def root(self) -> Node | None:
        """The tree with its places, under the overrides."""
        return self._root

    @property
    def warnings(self) -> tuple[RecipeError, ...]:
        """Warnings about values that are allowed but probably not meant."""
        return self._warnings

    @property
    def data_error(self) -> DataError | None:
        """The reason why the data could not be read, or None; without data, shapes are not checked."""
        return self._data_error

    @property
    def components(self) -> tuple[Resolved, ...]:
        """The resolved components in the order of building."""
        return self._components

    @property
    def objects(self) -> Mapping[str, Any]:
        """By path, the objects that are built once for all assemblies."""
        return self._objects


class DiffusionRecipe(Recipe):
    """The recipe of a diffusion. `conditions`: the conditions of the data that the network receives, each with its
    conditioner; null: all of them, unchanged, and `{}`: none."""

    conditions: dict[str, Annotated[ComponentSpec, ComponentField("conditioner")]] | None = None
    schedule: Annotated[ComponentSpec, ComponentField("schedule")]
    parameterization: Annotated[ComponentSpec, ComponentField("parameterization")]
    network: Annotated[ComponentSpec, ComponentField("network")]
    objective: Objective
    sample: Sample
    evaluate: Evaluate = Evaluate()


class CodecRecipe(Recipe):
    """The recipe of a codec; `loss` lists the losses, whose sum training minimises."""

    codec: Annotated[ComponentSpec, ComponentField("codec")]
    loss: tuple[Annotated[ComponentSpec, ComponentField("reconstruction-loss")], ...]


class ClassifierRecipe(Recipe):
    """The recipe of a classifier of noisy examples. `conditions`: the condition that it predicts, a class. `times`: the
    distribution of the times in training.
    """

    conditions: Name = "label"
    schedule: Annotated[ComponentSpec, ComponentField("schedule")]
    network: Annotated[ComponentSpec, ComponentField("network")]
    times: Annotated[ComponentSpec, ComponentField("times", "uniform")]


TASKS: Mapping[str, type[Recipe]] = {
    "diffusion": DiffusionRecipe,
    "codec": CodecRecipe,
    "classifier": ClassifierRecipe,
}
"""The recipe of each task."""
TASK = "task"
"""The key on which all other keys of a recipe depend, so its fault is the only one that is reported."""


def recipe_class(root: Node) -> type[Recipe]:
    """Return the recipe of the task that a tree names; for a missing or wrong task that of a diffusion."""
    entries = root.value if isinstance(root.value, dict) else {}
    task = entries[TASK].value if TASK in entries else None
    return TASKS.get(task, DiffusionRecipe) if isinstance(task, str) else DiffusionRecipe
