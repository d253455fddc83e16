"""The sections of a recipe, as frozen pydantic models. A field that is a component says of which kind it is.

`shorthand` is the field that a bare value means (`optimizer: adamw`). A section with a `component` field shares its
mapping with the options of that component: `data: {name: digits, label_dropout: 0.1}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ..errors import DataError, RecipeError
from .yaml import Node

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Every = Annotated[int, Field(ge=0, le=2**40)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class ComponentField:
    """Marks a field as a component of `kind`; `default` is the name that stands where the recipe says nothing."""

    kind: str
    default: str | None = None


@dataclass(frozen=True)
class ComponentSpec:
    """A component that a recipe names: the options it was given, validated, and where its class comes from.

    `options` holds only what was given; nested components are `ComponentSpec` as well. `plugin` is the name of
    the plugin.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    plugin: str = ""
    label: str = field(default="", compare=False)


class Section(BaseModel):
    """Base of the sections: frozen, closed, strict, finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    shorthand: ClassVar[str | None] = None


class Data(Section):
    """Where the examples come from, and what is done to them on the way. `label_dropout`: share of labels that
    become the null class, which classifier-free guidance needs."""

    component: Annotated[ComponentSpec, ComponentField("data")]
    augment: tuple[Annotated[ComponentSpec, ComponentField("augmentation")], ...] = ()
    label_dropout: Below1 = 0.0

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.component.name


class Objective(Section):
    """The loss = times x weighting x distance; None leaves times or weighting to the objective's own default."""

    component: Annotated[ComponentSpec, ComponentField("objective", "simple")]
    weighting: Annotated[ComponentSpec, ComponentField("weighting")] | None = None
    times: Annotated[ComponentSpec, ComponentField("times")] | None = None

    @property
    def name(self) -> str:
        """The name of the objective."""
        return self.component.name


class Optimizer(Section):
    """Adam or AdamW with the learning rate `lr` that the warm-up reaches and the decay leaves."""

    shorthand: ClassVar[str | None] = "name"
    name: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0, le=10)] = 2e-4
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Decay(Section):
    """The learning rate over time, from the end of the warm-up to the last step; `end` is its last value / `lr`."""

    shorthand: ClassVar[str | None] = "name"
    name: Literal["constant", "linear", "cosine"] = "constant"
    end: Annotated[float, Field(ge=0, le=1)] = 0.0


class Ema(Section):
    """An exponential moving average of the weights. Give one of: `decay` per optimizer step; `half_life` in images;
    `power`, the exponent of a power-law profile (1 - 1/step)^(power + 1).

    `warmup` for decay: min(decay, (1 + step) / (10 + step)); for half_life: at most 5 % of the images seen so far.
    """

    shorthand: ClassVar[str | None] = "decay"
    name: Name = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    half_life: Annotated[float, Field(gt=0)] | None = None
    power: Annotated[float, Field(gt=0)] | None = None
    warmup: bool = False


class Train(Section):
    """Training, counted in optimizer steps of `batch_size` examples over all devices. An interval of 0 is never.

    auto: `precision` bf16 where the hardware has it and it pays; `compile` in runs of 5,000 steps and more, and
    `channels_last` for images, both on a CUDA device.
    """

    steps: Every
    batch_size: Count = 128
    optimizer: Optimizer = Optimizer()
    schedule: Decay = Decay()
    warmup: Every = 0
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    ema: tuple[Ema, ...] = (Ema(decay=0.9999),)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Count = 1
    init: str | None = None
    validate_every: Every = 0
    log_every: Count = 50
    checkpoint_every: Every = 1000
    sample_every: Every = 0
    keep: Annotated[int, Field(ge=2, le=10000)] = 3
    compile: bool | Literal["auto"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None


class Sample(Section):
    """Sampling. `steps` None: every step of a discrete schedule, else 100. `start`: the time to start from, where
    the sampler cannot start at the end of the schedule. `labels` are repeated until `count`; None: all in turn."""

    sampler: Annotated[ComponentSpec, ComponentField("sampler", "ancestral")]
    grid: Annotated[ComponentSpec, ComponentField("grid", "trailing")]
    steps: Count | None = None
    start: Annotated[float, Field(gt=0)] | None = None
    count: Count = 64
    labels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    guidance: tuple[Annotated[ComponentSpec, ComponentField("guidance")], ...] = ()
    batch_size: Count = 64
    allow_mismatch: bool = False


class Evaluate(Section):
    """Metrics of `count` samples (None: as many as `sample.count`), drawn with weights `ema` unless said otherwise.

    `sampler`, `grid` and `steps` are those of `sample` where they are not given, so that a picture may take the full
    chain and the metrics a few steps.
    """

    shorthand: ClassVar[str | None] = "metrics"
    metrics: tuple[Annotated[ComponentSpec, ComponentField("metric")], ...] = ()
    sampler: Annotated[ComponentSpec, ComponentField("sampler")] | None = None
    grid: Annotated[ComponentSpec, ComponentField("grid")] | None = None
    steps: Count | None = None
    count: Count | None = None
    batch_size: Count | None = None


class Spec(Section):
    """A whole recipe."""

    name: Name
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    requires: dict[str, str] = {}
    data: Data
    codec: Annotated[ComponentSpec, ComponentField("codec", "identity")]
    schedule: Annotated[ComponentSpec, ComponentField("schedule")]
    parameterization: Annotated[ComponentSpec, ComponentField("parameterization")]
    network: Annotated[ComponentSpec, ComponentField("network")]
    objective: Objective
    train: Train
    sample: Sample
    evaluate: Evaluate = Evaluate()
    trackers: tuple[Annotated[ComponentSpec, ComponentField("tracker")], ...] = ()


class Recipe(Spec):
    """What a recipe says, every value valid; made by `load_recipe`.

    `text` is the recipe as it was given, `root` its tree under the overrides, `warnings` are faults that do not
    forbid a run, and `data_error` says why the data could not be looked at, where shapes are therefore unchecked.
    """

    _text: str = PrivateAttr(default="")
    _root: Node | None = PrivateAttr(default=None)
    _warnings: tuple[RecipeError, ...] = PrivateAttr(default=())
    _data_error: DataError | None = PrivateAttr(default=None)

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
        """What is allowed but probably not meant."""
        return self._warnings

    @property
    def data_error(self) -> DataError | None:
        """Why the data could not be looked at."""
        return self._data_error
