"""Schedules, parameterizations, data and denoisers that laws use as inputs; none of them needs a plugin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffkit import scalar
from diffkit.data import Data, DataSpec, InMemorySplit, Part
from diffkit.denoiser import Denoiser
from diffkit.estimate import Estimate
from diffkit.level import Level
from diffkit.objective import Weighting
from diffkit.parameterization import Parameterization
from diffkit.sampler import Sampler
from diffkit.scalar import Scalar
from diffkit.schedule import Discrete, Schedule

from ..oracles.base import Oracle
from ..oracles.gaussian import GaussianOracle
from ..oracles.mixture import MixtureOracle
from .order import at_logsnr


@dataclass(frozen=True)
class Path(Schedule):
    """A schedule given by its curve (alpha, sigma), and by its time as a function of the angle."""

    title: str
    curve: Callable[[Scalar], tuple[Scalar, Scalar]]
    clock: Callable[[Scalar], Scalar]
    t_clean: float = 0.0
    t_noise: float = 1.0

    def level(self, t: Scalar) -> Level:
        return Level(*self.curve(t))

    def time(self, level: Level) -> Scalar:
        return self.clock(level.angle)


def _half_turn(t: Scalar) -> tuple[Scalar, Scalar]:
    return scalar.cos(0.5 * math.pi * t), scalar.sin(0.5 * math.pi * t)


def _wavy(t: Scalar) -> tuple[Scalar, Scalar]:
    size = 1.0 + 0.6 * scalar.sin(3.0 * t)
    return size * scalar.cos(1.5 * t), size * scalar.sin(1.5 * t)


def _unit_sigma(t: Scalar) -> tuple[Scalar, Scalar]:
    return torch.ones_like(t) if isinstance(t, Tensor) else 1.0, t


TRIG = Path("trig", _half_turn, lambda angle: angle / (0.5 * math.pi))
RECTIFIED = Path("flow", lambda t: (1.0 - t, t), lambda a: scalar.divide(scalar.sin(a), scalar.sin(a) + scalar.cos(a)))
EXPLODING = Path("edm", _unit_sigma, scalar.tan, 0.002, 80.0)
WAVY = Path("random scale", _wavy, lambda angle: angle / 1.5, 0.0, 1.0)


@cache
def discrete(steps: int = 1000) -> Discrete:
    """Return linear betas, scaled so that any number of steps ends near pure noise."""
    return Discrete(torch.linspace(0.1 / steps, 20.0 / steps, steps, dtype=torch.float64).clamp(max=0.9))


@cache
def zero_terminal() -> Discrete:
    """Return twelve steps whose last one has no signal."""
    return Discrete([*torch.linspace(0.02, 0.6, 11, dtype=torch.float64).tolist(), 1.0])


@dataclass(frozen=True)
class Reclocked(Schedule):
    """The schedule `inner` with levels times `scale` and time t' = offset + rate t; continuous even if `inner` is
    discrete.
    """

    inner: Schedule
    offset: float = 0.0
    rate: float = 1.0
    scale: float = 1.0

    @property
    def t_clean(self) -> float:
        return self.offset + self.rate * self.inner.t_clean

    @property
    def t_noise(self) -> float:
        return self.offset + self.rate * self.inner.t_noise

    def level(self, t: Scalar) -> Level:
        level = self.inner.level((t - self.offset) / self.rate)
        return Level(self.scale * level.alpha, self.scale * level.sigma)

    def time(self, level: Level) -> Scalar:
        return self.offset + self.rate * self.inner.time(level)


@dataclass(frozen=True)
class Row(Parameterization):
    """A parameterization given by its coefficients (a, b)."""

    title: str
    row: Callable[[Level], tuple[Scalar, Scalar]]

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return self.row(level)


def _v(level: Level) -> tuple[Scalar, Scalar]:
    return -scalar.divide(level.sigma, level.scale), scalar.divide(level.alpha, level.scale)


def _edm(level: Level) -> tuple[Scalar, Scalar]:
    size = scalar.hypot(level.sigma, 0.5 * level.alpha)
    return scalar.divide(level.sigma, size) * 2.0 * 0.5, -0.5 * scalar.divide(level.alpha, size)


EPS = Row("eps", lambda level: (0.0, 1.0))
X0 = Row("x0", lambda level: (1.0, 0.0))
V = Row("v", _v)
FLOW = Row("flow", lambda level: (-1.0, 1.0))
EDM = Row("edm", _edm)
ROWS = (EPS, X0, V, FLOW, EDM)

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


def gaussian() -> GaussianOracle:
    """Return the exact denoiser of correlated Gaussian data in two dimensions."""
    return GaussianOracle(MEAN, COVARIANCE)


def mixture(turn: Tensor | None = None, shift: Tensor | None = None) -> MixtureOracle:
    """Return the exact denoiser of three Gaussian components in the plane, rotated by `turn` and moved by `shift`."""
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [-0.2, -0.9]], dtype=torch.float64)
    spreads = torch.stack([COVARIANCE * c for c in (0.2, 0.4, 0.1)])
    if turn is not None:
        means, spreads = means @ turn.T, turn @ spreads @ turn.T
    if shift is not None:
        means = means + shift
    return MixtureOracle([0.5, 0.3, 0.2], means, spreads)


@dataclass(frozen=True)
class GaussianData(Data):
    """Samples of `gaussian`, with its exact denoiser."""

    bins: int | None = None

    @property
    def spec(self) -> DataSpec:
        return DataSpec(2, bins=self.bins)

    def split(self, part: Part) -> InMemorySplit:
        source = torch.Generator().manual_seed(0 if part == "train" else 1)
        return InMemorySplit(gaussian().sample(256, source).float())

    def truth(self) -> Denoiser:
        return gaussian()


@dataclass(frozen=True)
class Pictures(Data):
    """Pictures (3, 8, 8) in [-1, 1] with labels 0..3; their channels and places differ and their pixels are correlated.

    stored    whether the raw values are uint8; the values in the range of the model are the same
    contrast  the factor on the values
    order     the seed of the order of the training examples
    shift     what is added to the held-out examples
    flat      whether the first channel is constant
    """

    stored: bool = False
    contrast: float = 1.0
    order: int = 0
    shift: float = 0.0
    flat: bool = False

    @property
    def spec(self) -> DataSpec:
        return DataSpec(3, (8, 8), classes=4, bounded=True, bins=256 if self.stored else None)

    def split(self, part: Part) -> InMemorySplit:
        source = torch.Generator().manual_seed(0 if part == "train" else 1)
        count = 1024 if part == "train" else 128
        sizes = ((1, 1, 1), (3, 1, 1), (1, 8, 8), (3, 8, 8))
        parts = [torch.randn(count, *size, generator=source) for size in sizes]
        parts[2] = torch.nn.functional.avg_pool2d(parts[2], 3, 1, 1)
        x = sum((0.12 * one for one in parts), torch.tensor([0.1, -0.2, 0.3])[:, None, None])
        x = x * torch.linspace(0.5, 1.3, 8)[:, None] + torch.linspace(-0.1, 0.1, 8)
        x = self.contrast * x * torch.tensor([0.5, 0.8, 1.1])[:, None, None] + (self.shift if part != "train" else 0.0)
        if self.flat:
            x[:, 0] = 0.2
        k = x.add(1.0).mul(127.5).round().clamp(0, 255)
        if part == "train":
            k = k[torch.randperm(count, generator=torch.Generator().manual_seed(self.order))]
        raw = k.to(torch.uint8) if self.stored else k / 127.5 - 1.0
        return InMemorySplit(raw, {"label": torch.arange(count) % 4})


@dataclass(frozen=True)
class ByLabel:
    """Denoisers for each label and, last, for the null label, as a conditional network learns them."""

    denoisers: Sequence[Denoiser]

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        null = len(self.denoisers) - 1
        label = cond.get("label", torch.full((len(x),), null))
        each = [denoise(x, level) for denoise in self.denoisers]
        rows = torch.arange(len(x))
        x0 = torch.stack([e.x0 for e in each])[label, rows]
        eps = torch.stack([e.eps for e in each])[label, rows]
        return Estimate(level, x0, eps)


def classes(spread: float = 1.0) -> ByLabel:
    """Return the exact denoiser of four Gaussian classes of variance 0.2 to 0.5 times `spread`, and, for the null
    label, of a wider Gaussian.
    """
    means = torch.tensor([[0.9, 0.0], [-0.6, 0.5], [0.0, -0.8], [1.5, 1.2]], dtype=torch.float64)
    each = [GaussianOracle(mean, spread * (0.2 + 0.1 * i)) for i, mean in enumerate(means)]
    return ByLabel([*each, GaussianOracle(torch.tensor([0.2, 0.2], dtype=torch.float64), 0.9)])


@dataclass(frozen=True)
class LabelledData(Data):
    """Samples of four classes that are wider than those of `classes()`, with their exact denoiser."""

    @property
    def spec(self) -> DataSpec:
        return DataSpec(2, classes=4)

    def split(self, part: Part) -> InMemorySplit:
        source = torch.Generator().manual_seed(0 if part == "train" else 1)
        each = [oracle.sample(64, source) for oracle in classes(1.2).denoisers[:4] if isinstance(oracle, Oracle)]
        return InMemorySplit(torch.cat(each).float(), {"label": torch.arange(4).repeat_interleave(64)})

    def truth(self) -> Denoiser:
        return classes(1.2)


@dataclass(frozen=True)
class OracleData(Data):
    """Samples of a distribution in two dimensions whose exact denoiser is `oracle`, or `learned` if it is given."""

    oracle: Oracle
    learned: Denoiser | None = None
    seed: int = 0

    @property
    def spec(self) -> DataSpec:
        return DataSpec(2)

    def split(self, part: Part) -> InMemorySplit:
        source = torch.Generator().manual_seed(2 * self.seed + (part != "train"))
        return InMemorySplit(self.oracle.sample(256, source).float())

    def truth(self) -> Denoiser:
        return self.learned or self.oracle


@dataclass(frozen=True)
class Endpoint:
    """The exact consistency function of a distribution: x0 is the end of the probability-flow path through x."""

    oracle: Oracle

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        if not isinstance(level.alpha, Tensor):
            return Estimate.from_x0(x, level, self.oracle.flow(x, level, Level(1.0, 0.0)))
        pairs = zip(torch.as_tensor(level.alpha).tolist(), torch.as_tensor(level.sigma).tolist(), strict=True)
        rows = [(Level(a, s), x[i : i + 1]) for i, (a, s) in enumerate(pairs)]
        return Estimate.from_x0(x, level, torch.cat([self.oracle.flow(one, at, Level(1.0, 0.0)) for at, one in rows]))


@dataclass(frozen=True)
class WithAux:
    """A denoiser whose estimates also have the entries of aux that a sampler needs, each a constant."""

    denoise: Denoiser
    names: tuple[str, ...]
    value: float = 0.5

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        estimate = self.denoise(x, level, **cond)
        return estimate.with_aux(**{name: torch.full_like(estimate.x0, self.value) for name in self.names})


def with_aux(sampler: Sampler[Any], denoise: Denoiser, variance_fraction: float = 0.5) -> Denoiser:
    """Add the entries of aux that a sampler needs to the estimates of a denoiser.

    Args:
        sampler: the sampler.
        denoise: the denoiser.
        variance_fraction: the value of each entry.

    Returns:
        The denoiser with these entries.
    """
    return WithAux(denoise, sampler.needs, variance_fraction) if sampler.needs else denoise


def probe_levels() -> tuple[Level, ...]:
    """Return levels of every family: variance preserving, exploding, straight, rescaled; without the ends."""
    angles = (0.02, 0.3, 0.8, 1.3, 1.55)
    return (
        *(Level(math.cos(a), math.sin(a)) for a in angles),
        *(Level(1.0, sigma) for sigma in (0.01, 0.5, 40.0)),
        *(Level(1.0 - t, t) for t in (0.1, 0.7)),
        Level(2.0, 0.6),
    )


def path(n: int, *, clean: bool, scale: Callable[[int], float] = lambda i: 1.0, uneven: bool = True) -> list[Level]:
    """Return n + 1 levels from half_logsnr -1.5 to 2, or to clean data.

    Args:
        n: the number of steps.
        clean: whether the last level is clean data.
        scale: the factor of alpha and sigma of level i.
        uneven: whether the steps in half_logsnr grow.

    Returns:
        The levels, noisiest first.
    """
    stops = n - 1 if clean else n
    power = 1.2 if uneven else 1.0
    levels = [at_logsnr(-1.5 + 3.5 * (i / max(1, stops)) ** power) for i in range(stops + 1)]
    if clean:
        levels.append(Level(1.0, 0.0))
    return [Level(level.alpha * scale(i), level.sigma * scale(i)) for i, level in enumerate(levels)]


def level_lists(deep: bool = False) -> list[tuple[str, list[Level]]]:
    """Return full and partial grids of a discrete schedule, even and uneven, each with a title."""
    schedule, full = discrete(), discrete(60)
    found = [("60 of 60 steps", [*(full.level(float(t)) for t in range(60, 0, -1)), full.clean])]
    for n in (1, 2, 3, 61, 600) if deep else (1, 2, 3, 61):
        times = sorted({1000 - (i * 997) // n - (i % 3) for i in range(n)}, reverse=True)
        found.append((f"{n} of 1000 steps", [*(schedule.level(float(t)) for t in times), schedule.clean]))
    found.append(("to a noisy level", path(5, clean=False)))
    return found


@dataclass(frozen=True)
class Ranged(Parameterization):
    """A parameterization with a second output for each dimension: variance_fraction in [0, 1]."""

    inner: Parameterization
    provides = ("variance_fraction",)

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return self.inner.coefficients(level)

    def out_channels(self, channels: int) -> int:
        return 2 * channels

    def decode(self, y: Tensor, x: Tensor, level: Level) -> Estimate:
        mean, fraction = y.chunk(2, 1)
        return self.inner.decode(mean, x, level).with_aux(variance_fraction=(fraction + 1.0) / 2.0)


@dataclass(frozen=True)
class SNRWeight(Weighting):
    """Signal-to-noise weights: w = snr on |x0 - x0_hat|^2."""

    def __call__(self, level: Level) -> Scalar:
        return level.snr
