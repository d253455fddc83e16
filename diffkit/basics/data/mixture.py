"""Mixtures of Gaussians: distributions with many modes whose exact denoiser is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit.data import Data, DataSpec, InMemorySplit, Part
from diffkit.denoiser import Denoiser

from .fingerprint import fingerprint
from .layouts import DEFAULT_COMPONENTS, Layout, centres
from .parts import divided

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Mixture(Data):
    """x0 ~ sum_k weights_k N(means_k, stds_k^2 I), vectors x (D,), drawn once from `seed`.

    `layout` places `components` equal Gaussians of width `std` in the plane: on a ring, a square grid, two moons,
    a spiral, or the dark fields of a checkerboard; `spread` scales their places, which else fill [-1, 1]^2.
    `layout: explicit` takes `means` (any dimension), and `weights` and `stds` where they are not all equal.
    `labels: true` tells which component each example comes from. `truth()` is the exact denoiser E[x0 | x].
    Raises ValueError where the options contradict each other.
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
    law_options = (
        {"labels": True, "std": 0.3},
        {"layout": "explicit", "means": ((0.0,), (2.0,)), "stds": (0.2, 0.8)},
    )

    def __post_init__(self) -> None:
        if self.layout == "explicit":
            self._check_explicit()
            return
        given = [option for option in ("means", "weights", "stds") if getattr(self, option)]
        if given:
            raise ValueError(f"{', '.join(given)} need layout: explicit; layout is {self.layout}")
        centres(self.layout, self._components)

    def _check_explicit(self) -> None:
        if not self.means or not self.means[0] or len({len(mean) for mean in self.means}) > 1:
            raise ValueError("layout: explicit needs means, all of one length: means: [[0, 0], [1, 1]]")
        if self.components is not None or self.spread != 1.0:
            raise ValueError("layout: explicit takes its places from means; leave components and spread out")
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
        from diffkit.testing import MixtureOracle

        variances = self._stds.square()[:, None].expand_as(self._means)
        return MixtureOracle(self._weights, self._means, variances)

    def fingerprint(self) -> str:
        return fingerprint(self)

    @property
    def _components(self) -> int:
        return self.components or DEFAULT_COMPONENTS[self.layout]

    @cached_property
    def _means(self) -> Tensor:
        """(K, D) float64."""
        if self.layout == "explicit":
            return torch.tensor(self.means, dtype=torch.float64)
        return self.spread * centres(self.layout, self._components)

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
        return divided(x, labels, (range(self.count), range(self.count, total)))
