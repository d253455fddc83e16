"""Denoisers: whoever estimates x0 and eps from a noisy x at a level.

A `Denoiser` is any function (x, level, **cond) -> Estimate. `Model` makes one of a network, a parameterization and
the schedule it was trained on; guidance makes one of another; oracles are ones in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .errors import LevelError
from .estimate import Estimate
from .level import Level, broadcast
from .network import Network
from .parameterization import Parameterization
from .scalar import Scalar
from .schedule import Schedule

MOST_PLACES = 4096
SLACK = 1e-5
"""How far outside of its schedule, in relative angle, a level is taken for rounding: SLACK clean, SLACK^2 noisy."""


class Denoiser(Protocol):
    """x: (B, C, *S) at `level`, cond: one row for each example -> the estimate of x0 and eps."""

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate: ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a level lies on the own curve: the level there, the factor of x, and what the network is told."""

    own: Level
    stretch: Scalar
    c_in: Scalar
    c_noise: Scalar

    @property
    def is_here(self) -> bool:
        """Whether the level lies on the own curve already; a level of tensors never says so."""
        return isinstance(self.stretch, float) and self.stretch == 1.0


@dataclass(frozen=True)
class Model:
    """A network, what its output means, and the curve it was trained on.

    The curve need not be the sampler's: (x0, eps) survives rescaling, so x is carried to the point of the own curve
    that has the same signal-to-noise ratio, and the level is never rounded. Only the network runs in the type of its
    weights (or under autocast); decoding happens in the type of x.
    """

    network: Network
    parameterization: Parameterization
    schedule: Schedule
    _places: dict[Level, _Place] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        """The estimate at `level`, of any scale. Raises LevelError outside of the levels of the schedule."""
        place = self._places.get(level) or self._place(level)
        z = x if place.is_here else x * broadcast(place.stretch, x)
        y = self._answer(z, place.c_in, place.c_noise, cond)
        if self.parameterization.full_precision and y.dtype in (torch.float16, torch.bfloat16):
            raise LevelError(
                f"{type(self.parameterization).__name__.lower()} cannot be decoded from a {y.dtype} output: "
                "the division amplifies its rounding",
                code="DK505",
                fix="run the network in float32 (train.precision: fp32), or use eps or x0",
            )
        estimate = self.parameterization.decode(y if y.dtype == x.dtype else y.to(x.dtype), z, place.own)
        return estimate if place.is_here else estimate.at_level(level)

    def output(self, x: Tensor, level: Level, t: Scalar | None = None, /, **cond: Tensor) -> Tensor:
        """What the network says, undecoded, at a level of its own curve; t is its time where that is known."""
        return self._answer(x, self.parameterization.c_in(level), self._told(level, t), cond)

    def _answer(self, x: Tensor, c_in: Scalar, c_noise: Scalar, cond: Mapping[str, Tensor]) -> Tensor:
        if not isinstance(c_in, float) or c_in != 1.0:
            x = broadcast(c_in, x) * x
        if isinstance(c_noise, Tensor):
            column = c_noise.to(device=x.device, dtype=torch.float32).expand(len(x))
        else:
            column = torch.full((len(x),), c_noise, device=x.device, dtype=torch.float32)
        if self._weight is not None and self._weight.dtype != x.dtype:
            x = x.to(self._weight.dtype)
        return self.network(x, column, **cond)  # type: ignore[no-any-return]

    @cached_property
    def _weight(self) -> Tensor | None:
        """A weight of the network, in whose type it computes; it stays the same object when it is cast or moved."""
        return next((p for p in self.network.parameters() if p.is_floating_point()), None)

    def _told(self, level: Level, t: Scalar | None = None) -> Scalar:
        """c_noise of the parameterization, or the index of the schedule."""
        told = self.parameterization.c_noise(level)
        if told is not None:
            return told
        index = self.schedule.index(self.schedule.time(level) if t is None else t)
        if not self.network.integer_time:
            return index
        return index.round() if isinstance(index, Tensor) else float(round(index))

    def _place(self, level: Level) -> _Place:
        """Every batch on a grid asks for the same few levels of floats, so their places are remembered."""
        if isinstance(level.sigma, Tensor) or isinstance(level.alpha, Tensor):
            return self._find(level)
        if level not in self._places:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            self._places[level] = self._find(level)
        return self._places[level]

    def _find(self, level: Level) -> _Place:
        self._refuse_outside(level)
        t = self.schedule.time(level)
        own = self._own(level, t)
        stretch = 1.0 if own is level else own.scale / level.scale
        return _Place(own, stretch, self.parameterization.c_in(own), self._told(own, t))

    def _refuse_outside(self, level: Level) -> None:
        if isinstance(level.sigma, Tensor):
            return
        clean, noise = self.schedule.level(self.schedule.t_clean), self.schedule.noise
        if not float(clean.angle) * (1 - SLACK) <= float(level.angle) <= float(noise.angle) * (1 + SLACK**2):
            raise LevelError(
                f"a level with sigma/alpha = {float(level.ratio):.6g} lies outside of what the model was trained on, "
                f"[{float(clean.ratio):.6g}, {float(noise.ratio):.6g}]",
                code="DK506",
                fix="let the grid start and end inside (sample.grid, sample.start), or let the sampler add less noise",
            )

    def _own(self, level: Level, t: Scalar) -> Level:
        """The level of the same signal-to-noise ratio on the own curve; `level` itself where it lies on it."""
        scale = self.schedule.level(t).scale
        if not isinstance(scale, Tensor) and abs(scale / float(level.scale) - 1.0) < 1e-9:
            return level
        return level.rescaled(scale)
