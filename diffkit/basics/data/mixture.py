"""Mixtures of Gaussians: distributions with many modes whose exact denoiser is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Data, DataSpec, Denoiser, InMemorySplit, Part
from diffkit.oracles import MixtureOracle

from .files import fingerprint
from .splits import in_memory_parts

Layout = Literal["ring", "grid", "moons", "spiral", "checkerboard", "explicit"]
DEFAULT_COMPONENTS: dict[Layout, int] = {"ring": 8, "grid": 25, "moons": 32, "spiral": 40, "checkerboard": 8}
SPIRAL_TURNS = 1.5
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Mixture(Data):
    """Vectors x (D,) from a mixture of Gaussians: x0 ~ sum_k weights_k N(means_k, stds_k^2 I), drawn once from `seed`.

    `layout` places `components` equal Gaussians of width `std` in the plane: on a ring, a square grid, two moons,
    a spiral, or the dark fields of a checkerboard; their means fill [-1, 1]^2, times `spread`.
    `layout: explicit` takes `means` (any dimension), and `weights` and `stds` if they are not all equal.
    `labels: true` labels each example with its component. `truth()` is the exact denoiser E[x0 | x].
    Raises ValueError if the options contradict each other.
    """

    layout: Layout = "ring"
    components: Count | None = None
    std: Positive = 0.05
    spread: Positive = 1.0
    means: tuple[tuple[float, ...], ...] = ()
    weights: tuple[Positive, ...] = ()
    stds: tuple[Positive, ...] = ()
    labels: bool = False
    count: Count = 16384
    held_out: Count = 4096
    seed: int = 0
    law_options = ({"labels": True, "std": 0.3}, {"layout": "explicit", "means": ((0.0,), (2.0,)), "stds": (0.2, 0.8)})

    def __post_init__(self) -> None:
        if self.layout == "explicit":
            self._check_explicit()
            return
        given = [option for option in ("means", "weights", "stds") if getattr(self, option)]
        if given:
            raise ValueError(f"{', '.join(given)} need layout: explicit; layout is {self.layout}")
        component_means(self.layout, self._components)

    def _check_explicit(self) -> None:
        if not self.means or not self.means[0] or len({len(mean) for mean in self.means}) > 1:
            raise ValueError("layout: explicit needs means, all of one length: means: [[0, 0], [1, 1]]")
        if self.components is not None or self.spread != 1.0:
            raise ValueError("layout: explicit uses means; leave components and spread out")
        for option in ("weights", "stds"):
            values = getattr(self, option)
            if values and len(values) != len(self.means):
                raise ValueError(f"{option} has {len(values)} values, means has {len(self.means)}")
        if self.stds and self.std != type(self).std:
            raise ValueError("give std or stds, not both")

    @property
    def spec(self) -> DataSpec:
        channels = len(self.means[0]) if self.layout == "explicit" else 2
        return DataSpec(channels, classes=len(self._means) if self.labels else None)

    def split(self, part: Part) -> InMemorySplit:
        return self._parts[part]

    def truth(self) -> Denoiser:
        variances = self._stds.square()[:, None].expand_as(self._means)
        return MixtureOracle(self._weights, self._means, variances)

    def fingerprint(self) -> str:
        return fingerprint(self)

    @property
    def _components(self) -> int:
        return self.components or DEFAULT_COMPONENTS[self.layout]

    @cached_property
    def _means(self) -> Tensor:
        """Return the means of the components: (K, D) float64."""
        if self.layout == "explicit":
            return torch.tensor(self.means, dtype=torch.float64)
        return self.spread * component_means(self.layout, self._components)

    @property
    def _weights(self) -> Tensor:
        weights = torch.tensor(self.weights or (1.0,) * len(self._means), dtype=torch.float64)
        return weights / weights.sum()

    @property
    def _stds(self) -> Tensor:
        return torch.tensor(self.stds or (self.std,) * len(self._means), dtype=torch.float64)

    @cached_property
    def _parts(self) -> Mapping[Part, InMemorySplit]:
        generator = torch.Generator().manual_seed(self.seed)
        total = self.count + self.held_out
        k = torch.multinomial(self._weights, total, replacement=True, generator=generator)
        z = torch.randn(total, self.spec.channels, generator=generator, dtype=torch.float64)
        x = (self._means[k] + self._stds[k, None] * z).float()
        labels = k if self.labels else None
        return in_memory_parts(x, labels, (range(self.count), range(self.count, total)))


def component_means(layout: Layout, components: int) -> Tensor:
    """Place the components of a layout in [-1, 1]^2: (K, 2) float64. Raises ValueError if the number does not fit."""
    build = {"ring": _ring, "grid": _grid, "moons": _moons, "spiral": _spiral, "checkerboard": _checkerboard}[layout]
    return build(components)


def _ring(k: int) -> Tensor:
    return _polar(torch.ones(k, dtype=torch.float64), 2 * math.pi * torch.arange(k, dtype=torch.float64) / k)


def _grid(k: int) -> Tensor:
    side = math.isqrt(k)
    if side * side != k or k < 4:
        raise ValueError(f"layout grid needs a square number of components, 4, 9, 16, ...; components is {k}")
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def _moons(k: int) -> Tensor:
    """Return two half circles, the upper one first."""
    if k % 2 or k < 4:
        raise ValueError(f"layout moons needs an even number of components, 4 or more; components is {k}")
    arc = _polar(torch.ones(k // 2, dtype=torch.float64), torch.linspace(0, math.pi, k // 2, dtype=torch.float64))
    upper = arc - torch.tensor([0.5, 0.25], dtype=torch.float64)
    return torch.cat([upper, -upper]) / 1.5


def _spiral(k: int) -> Tensor:
    """Return an Archimedean spiral; the components are evenly spaced along the arc, to first order."""
    radius = torch.linspace(0.01, 1, k, dtype=torch.float64).sqrt()
    return _polar(radius, 2 * math.pi * SPIRAL_TURNS * radius)


def _checkerboard(k: int) -> Tensor:
    side = math.isqrt(2 * k)
    if side * side != 2 * k:
        raise ValueError(f"layout checkerboard needs 2, 8, 18, ... (2 n^2) components; components is {k}")
    fields = torch.tensor([(i, j) for i in range(side) for j in range(side) if (i + j) % 2 == 0], dtype=torch.float64)
    return (2 * fields + 1) / side - 1


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
