"""Schedules: the level as a function of time, and its inverse.

t runs from t_clean (data) to t_noise, and the signal-to-noise ratio decreases strictly. Formulas are computed in
float64. A `Discrete` schedule is a curve through a table: t = 0 is clean data, t = 1..T are the steps of the paper.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import scalar
from .interface import attribute
from .level import Level
from .scalar import Scalar

SNAP = 2e-3
"""Times of a discrete schedule that are this close to an integer are rounded to it."""


class Schedule(ABC):
    """Base of schedules. Implement `level` and `time`, each for floats and for tensors."""

    @attribute
    def t_clean(self) -> float:
        """Time of the data; default 0."""
        return 0.0

    @attribute
    def t_noise(self) -> float:
        """Time of the noisiest level; default 1."""
        return 1.0

    @attribute
    def steps(self) -> int | None:
        """Number of steps T of a discrete schedule; None (default) for a continuous one."""
        return None

    @abstractmethod
    def level(self, t: Scalar) -> Level:
        """Return the level at time t: a float, or a tensor (B,)."""

    @abstractmethod
    def time(self, level: Level) -> Scalar:
        """Return the time at which the schedule has the signal-to-noise ratio of `level`, which may have any scale."""

    def index(self, t: Scalar) -> Scalar:
        """Return the time as networks receive it: 1000 (t - t_clean) / (t_noise - t_clean), or t - 1 if discrete."""
        return 1000.0 * (t - self.t_clean) / (self.t_noise - self.t_clean)

    @property
    def clean(self) -> Level:
        """The level at which sampling ends: that of t_clean with sigma = 0."""
        return Level(self.level(self.t_clean).alpha, 0.0)

    @property
    def noise(self) -> Level:
        """The level at which sampling starts: that of t_noise."""
        return self.level(self.t_noise)


class Discrete(Schedule):
    """A discrete schedule, variance preserving: alpha_bar_t = prod_{i <= t} (1 - beta_i), t in {0..T}.

    alpha_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t), tables in float64. Between integers the angle
    atan2(sigma, alpha) is interpolated linearly, which keeps the variance and reaches alpha = 0 if beta_T = 1.
    `time` returns an integer if it is within 2e-3 of one. Raises ValueError unless every beta is in (0, 1); only
    the last may be 1. Source: Ho et al. 2020 (arXiv:2006.11239), sec. 2.
    """

    t_clean = 0.0
    steps: int
    betas: Tensor
    _host: tuple[list[float], list[float], list[float]]
    _on: dict[torch.device, tuple[Tensor, Tensor, Tensor]]

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        table = torch.as_tensor(betas, dtype=torch.float64)
        if table.ndim != 1 or len(table) == 0:
            raise ValueError("betas must be a list of at least one number")
        if not (bool((table > 0).all()) and bool((table[:-1] < 1).all()) and float(table[-1]) <= 1):
            raise ValueError("every beta must lie in (0, 1); only the last may be 1")
        log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-table).cumsum(0)])
        alpha, sigma = torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))
        tables = (alpha, sigma, torch.atan2(sigma, alpha))
        # A subclass may be a frozen dataclass, which refuses assignment; these values are not fields of it.
        vars(self).update(
            steps=len(table),
            t_noise=float(len(table)),
            betas=table,
            _host=tuple(values.tolist() for values in tables),
            _on={table.device: tables},
        )

    def level(self, t: Scalar) -> Level:
        """Return the level at t in [0, T]: a float, or (B,) integers or floats; tensors give float64 levels."""
        if isinstance(t, Tensor):
            return self._level_of_tensor(t)
        alphas, sigmas, angles = self._host
        low = min(int(t), self.steps - 1)
        fraction = t - low
        if not 0.0 <= t <= self.steps:
            raise ValueError(f"t = {t} lies outside of [0, {self.steps}]")
        if fraction in (0.0, 1.0):
            at = low + int(fraction)
            return Level(alphas[at], sigmas[at])
        angle = angles[low] + fraction * (angles[low + 1] - angles[low])
        return Level(math.cos(angle), math.sin(angle))

    def time(self, level: Level) -> Scalar:
        """Return the time of `level`, which may have any scale; levels beyond the ends give the ends."""
        angle = level.angle
        if isinstance(angle, Tensor):
            return self._time_of_tensor(angle)
        angles = self._host[2]
        low = min(max(bisect.bisect_right(angles, angle) - 1, 0), self.steps - 1)
        t = low + (angle - angles[low]) / (angles[low + 1] - angles[low])
        t = min(max(t, 0.0), self.t_noise)
        return float(round(t)) if abs(t - round(t)) <= SNAP else t

    def index(self, t: Scalar) -> Scalar:
        """Return t - 1, since networks count steps from 0 and papers from 1."""
        return t - 1

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._on:
            alpha, sigma, angle = self._on[self.betas.device]
            self._on[device] = (alpha.to(device), sigma.to(device), angle.to(device))
        return self._on[device]

    def _level_of_tensor(self, t: Tensor) -> Level:
        alphas, sigmas, angles = self._tables(t.device)
        if not t.is_floating_point():
            return Level(alphas[t], sigmas[t])
        wide = t.double()
        low = wide.detach().floor().clamp(0, self.steps - 1).long()
        angle = torch.lerp(angles[low], angles[low + 1], wide - low)
        if t.requires_grad:
            return Level(torch.cos(angle), torch.sin(angle))
        whole = wide.round()
        exact = wide == whole
        at = whole.long()
        return Level(torch.where(exact, alphas[at], torch.cos(angle)), torch.where(exact, sigmas[at], torch.sin(angle)))

    def _time_of_tensor(self, angle: Tensor) -> Tensor:
        _, _, angles = self._tables(angle.device)
        angle = angle.double()
        low = (torch.searchsorted(angles, angle.detach().contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        t = (low + (angle - angles[low]) / (angles[low + 1] - angles[low])).clamp(0.0, self.t_noise)
        return torch.where((t - t.round()).abs() <= SNAP, t.round(), t)


def sde(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Compute (f, g^2) of the forward process dx = f x dt + g dw at t: (B,), by automatic differentiation.

    f = d log(alpha) / dt, g^2 = d(sigma^2) / dt - 2 f sigma^2.
    Source: Song et al. 2021 (arXiv:2011.13456), eq. 29; Kingma et al. 2021 (arXiv:2107.00630), app. A.
    """
    with torch.enable_grad():
        t = t.detach().double().requires_grad_()
        level = schedule.level(t)
        log_alpha, variance = scalar.log(level.alpha), level.sigma**2
        f = _slope(log_alpha, t)
        g2 = _slope(variance, t) - 2.0 * f * variance
    return f.detach(), g2.detach()


def _slope(value: Scalar, t: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or not value.requires_grad:
        return torch.zeros_like(t)
    (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True, allow_unused=True, materialize_grads=True)
    return slope


@dataclass(frozen=True)
class Until(Schedule):
    """The part of the schedule `whole` from clean data to time `start`; levels, times and indices are unchanged.

    Raises ValueError unless t_clean < start <= t_noise, and on a discrete schedule unless start is an integer.
    """

    whole: Schedule
    start: float

    def __post_init__(self) -> None:
        if not self.whole.t_clean < self.start <= self.whole.t_noise:
            raise ValueError(
                f"start is {self.start:g}, outside the schedule ({self.whole.t_clean:g}, {self.whole.t_noise:g}]"
            )
        if self.whole.steps is not None and self.start != int(self.start):
            raise ValueError(f"start is {self.start:g}, but a discrete schedule starts at an integer step")

    @property
    def t_clean(self) -> float:
        return self.whole.t_clean

    @property
    def t_noise(self) -> float:
        return self.start

    @property
    def steps(self) -> int | None:
        return None if self.whole.steps is None else int(self.start)

    def level(self, t: Scalar) -> Level:
        return self.whole.level(t)

    def time(self, level: Level) -> Scalar:
        return self.whole.time(level)

    def index(self, t: Scalar) -> Scalar:
        return self.whole.index(t)


def sampled(schedule: Schedule, start: float | None) -> Schedule:
    """Return the part of `schedule` that sampling visits: all of it, or the part up to time `start`."""
    return schedule if start is None else Until(schedule, start)


def default_steps(schedule: Schedule) -> int:
    """Return the number of sampling steps if the recipe sets none: all of a discrete schedule, else 100."""
    return schedule.steps if schedule.steps is not None else 100
