"""A one-file plugin with small components that bring out every rule of the recipe layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import scalar
from diffkit.data import Augmentation, Data, DataSpec, InMemorySplit
from diffkit.errors import DataError
from diffkit.estimate import Estimate
from diffkit.grid import Grid
from diffkit.guidance import Guidance
from diffkit.host import Entry, hookimpl
from diffkit.level import Level
from diffkit.metric import Metric
from diffkit.network import Network, Shape
from diffkit.objective import Objective
from diffkit.parameterization import Parameterization
from diffkit.sampler import Sampler
from diffkit.schedule import Discrete, Schedule
from diffkit.times import UNIFORM_TIMES, Times

NAMES = {
    "schedule": {"straight": "Straight", "zero": "Zero", "greedy": "Greedy", "drifting": "Drifting"},
    "parameterization": {"velocity": "Velocity", "two-heads": "TwoHeads", "relative": "Relative"},
    "network": {"tiny": "Tiny", "counting": "Counting"},
    "sampler": {"learned": "Learned", "stepwise": "Stepwise", "shy": "Shy", "wrapper": "Wrapper"},
    "grid": {"late": "Late", "halves": "Halves"},
    "guidance": {"null-guided": "NullGuided"},
    "objective": {"plain": "Plain"},
    "data": {"absent": "Absent", "points": "Points", "labelled": "Labelled"},
    "augmentation": {"shift": "Shift", "noisy": "Noisy", "fitted": "Fitted"},
    "metric": {"choosy": "Choosy", "kwargs": "Kwargs", "named": "Named", "unannotated": "Unannotated", "own": "Own"},
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    for kind, names in NAMES.items():
        for name, cls in names.items():
            yield Entry(kind, name, f"{__name__}:{cls}", "a stand-in")


@dataclass(frozen=True)
class Straight(Schedule):
    """alpha = 1 - t, sigma = t: continuous, ends at alpha = 0."""

    def level(self, t: Any) -> Level:
        return Level(1.0 - t, t)

    def time(self, level: Level) -> Any:
        return level.sigma / (level.alpha + level.sigma)


class Zero(Discrete):
    """Discrete, the last beta being 1."""

    def __init__(self, steps: Annotated[int, Field(ge=2, le=1000)] = 10) -> None:
        super().__init__([0.1] * (steps - 1) + [1.0])


@dataclass(frozen=True)
class Greedy(Discrete):
    """Requires what is built after it."""

    network: Network

    def __post_init__(self) -> None:
        Discrete.__init__(self, [0.1, 0.2])


class Drifting(nn.Module, Discrete):
    """A schedule with a parameter."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        Discrete.__init__(self, [0.1] * 9 + [0.9])
        self.drift = nn.Parameter(torch.zeros(1))


@dataclass(frozen=True)
class Velocity(Parameterization):
    def coefficients(self, level: Level) -> tuple[Any, Any]:
        return -1.0, 1.0


@dataclass(frozen=True)
class TwoHeads(Parameterization):
    inner: Parameterization = field(default_factory=Velocity)
    provides = ("variance_fraction",)

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        return self.inner.coefficients(level)

    def out_channels(self, channels: int) -> int:
        return 2 * channels

    def decode(self, y: Tensor, x: Tensor, level: Level) -> Estimate:
        return self.inner.decode(y[:, : x.shape[1]], x, level)


@dataclass(frozen=True)
class Relative(Parameterization):
    """Defined by the steps of its schedule."""

    schedule: Schedule
    discrete_only = True
    full_precision = True

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        return scalar.divide(level.sigma, level.sigma) * 0.0, 1.0


class Tiny(Network):
    """One linear map; `width` must be even."""

    def __init__(
        self, shape: Shape, width: Annotated[int, Field(gt=0)] = 8, act: Literal["relu", "silu"] = "silu"
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width is {width}, which is odd")
        if width == 666:
            raise ZeroDivisionError("a bug of the plugin")
        pixels = 1
        for side in shape.size:
            pixels *= side
        self.wide = nn.Linear(shape.in_channels * pixels, width)
        self.back = nn.Linear(width, shape.out_channels * pixels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.back(self.wide(x.flatten(1))).reshape(len(x), -1, *x.shape[2:])


class Counting(Tiny):
    """Counts how often it was built off the meta device."""

    built = 0

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        if self.wide.weight.device.type != "meta":
            type(self).built += 1


@dataclass(frozen=True)
class Learned(Sampler[None]):
    needs = ("variance_fraction",)

    def step(self, denoise: Any, x: Tensor, t: Level, s: Level, state: None, noise: Any) -> tuple[Tensor, None]:
        return denoise(x, t).step_to(s), None


@dataclass(frozen=True)
class Stepwise(Learned):
    needs = ()
    discrete_only = True


@dataclass(frozen=True)
class Shy(Learned):
    needs = ()
    reaches_noise = False


@dataclass(frozen=True)
class Wrapper(Learned):
    """A sampler of samplers, with a tuple of nested components too."""

    inner: Sampler[Any]
    others: tuple[Sampler[Any], ...] = ()
    needs = ()


@dataclass(frozen=True)
class Late(Grid):
    """Starts at a share of the schedule."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def points(self, schedule: Schedule, n: int) -> list[float]:
        high = schedule.t_clean + self.share * (schedule.t_noise - schedule.t_clean)
        return [high - (high - schedule.t_clean) * j / n for j in range(n)]


@dataclass(frozen=True)
class Halves(Late):
    reaches_noise = False


@dataclass(frozen=True)
class NullGuided(Guidance):
    shape: Shape | None = None
    needs_null = True

    def __call__(self, denoise: Any) -> Any:
        return denoise


@dataclass(frozen=True)
class Plain(Objective):
    """Takes times, and no weighting."""

    times: Times = UNIFORM_TIMES
    needs = ()

    def __call__(self, model: Any, x0: Tensor, noise: Any, *, ema: Any = None, **cond: Tensor) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Points(Data):
    """Two-dimensional points without labels."""

    count: Annotated[int, Field(ge=4)] = 16
    box: tuple[float, float] = (-1.0, 1.0)
    names: tuple[str, ...] = ()
    mode: Literal["even", "odd"] | None = None
    fraction: int | float = 4
    table: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.box[0] < self.box[1]:
            raise ValueError(f"box must rise, not {self.box}")

    @property
    def spec(self) -> DataSpec:
        return DataSpec(2)

    def split(self, part: Any) -> InMemorySplit:
        return InMemorySplit(torch.zeros(self.count, 2))


@dataclass(frozen=True)
class Labelled(Points):
    @property
    def spec(self) -> DataSpec:
        return DataSpec(1, (4, 4), classes=3)


@dataclass(frozen=True)
class Absent(Points):
    @property
    def spec(self) -> DataSpec:
        raise DataError("the files are not there", code="DK301")


@dataclass(frozen=True)
class Shift(Augmentation):
    by: float = 0.5

    def __call__(self, x: Tensor, uniform: Tensor, cond: Any) -> Any:
        return x + self.by, cond


class Noisy(Augmentation):
    """Draws in its constructor."""

    def __init__(self) -> None:
        self.offset = torch.rand(()).item()

    def __call__(self, x: Tensor, uniform: Tensor, cond: Any) -> Any:
        return x + self.offset, cond


@dataclass(frozen=True)
class Fitted(Shift):
    """Requires the shape."""

    shape: Shape = field(kw_only=True)


class _Metric(Metric):
    def __call__(self, evaluation: Any) -> dict[str, float]:
        return {"value": 0.0}


class Choosy(_Metric):
    def __init__(self, level: Annotated[int, Field(multiple_of=5)] = 5, exact: bool = False) -> None:
        self.level, self.exact = level, exact


class Kwargs(_Metric):
    def __init__(self, **options: float) -> None:
        self.options = options


class Named(_Metric):
    def __init__(self, name: str = "x") -> None:
        self.name = name


class Unannotated(_Metric):
    def __init__(self, level=5) -> None:
        self.level = level


class Own(_Metric):
    def __init__(self, metric: Metric) -> None:
        self.metric = metric
