"""The usual grids of times. They differ in the density of steps along the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Grid, Schedule


@dataclass(frozen=True)
class Linspace(Grid):
    """A grid of n equally spaced times from T to 1, both included, then clean data: t_j = T - (T - 1) j / (n - 1).

    On a continuous schedule, equal parts from t_noise down to clean data, or to t_clean if the level there is noisy.
    Source: Ho et al. 2020 (arXiv:2006.11239), with n = T.
    Differs: diffusers' "linspace" numbers from 0 and steps by T // n, not to the next point.
    """

    def points(self, schedule: Schedule, n: int) -> list[float]:
        low = 1.0 if schedule.steps is not None else schedule.t_clean
        high = schedule.t_noise
        if n == 1:
            return [high]
        open_end = schedule.steps is None and schedule.level(schedule.t_clean).is_clean
        parts = n if open_end else n - 1
        return [(high * (parts - j) + low * j) / parts for j in range(n)]


@dataclass(frozen=True)
class Trailing(Grid):
    """A grid of equally spaced times counted from the noisy end of the schedule: t_j = T (1 - j / n), j = 0..n-1.

    Source: Lin et al. 2023 (arXiv:2305.08891), sec. 3.3.
    Differs: exact for every n, where diffusers' arange gives n + 1 times for 62 values of n <= 1000.
    """

    def points(self, schedule: Schedule, n: int) -> list[float]:
        span = schedule.t_noise - schedule.t_clean
        return [schedule.t_noise - span * j / n for j in range(n)]


@dataclass(frozen=True)
class Leading(Grid):
    """A grid of multiples of an integer stride: t_j = (n - 1 - j) floor(T / n) + 1, j = 0..n-1. The first time is below
    T.

    Source: Song et al. 2021 (arXiv:2010.02502), code; the default of most samplers in diffusers.
    """

    discrete_only = True
    declares_deficit = True

    def points(self, schedule: Schedule, n: int) -> list[float]:
        assert schedule.steps is not None
        stride = schedule.steps // n
        return [float((n - 1 - j) * stride + 1) for j in range(n)]


@dataclass(frozen=True)
class Quadratic(Grid):
    """A grid of times with equally spaced square roots: t_j = 1 + (end T - 1) ((n - 1 - j) / (n - 1))^2, denser near
    clean data.

    Source: Song et al. 2021 (arXiv:2010.02502), app. D.2. Differs: ends at T; their code stops at end = 0.8.
    """

    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    law_options = ({"end": 0.8},)

    @property
    def declares_deficit(self) -> bool:
        return self.end < 1.0

    def points(self, schedule: Schedule, n: int) -> list[float]:
        span = schedule.t_noise - schedule.t_clean
        high = schedule.t_clean + self.end * span
        if n == 1:
            return [high]
        if schedule.steps is not None:
            return [1.0 + (max(high, 1.0) - 1.0) * ((n - 1 - j) / (n - 1)) ** 2 for j in range(n)]
        if schedule.level(schedule.t_clean).is_clean:
            return [schedule.t_clean + (high - schedule.t_clean) * ((n - j) / n) ** 2 for j in range(n)]
        return [schedule.t_clean + (high - schedule.t_clean) * ((n - 1 - j) / (n - 1)) ** 2 for j in range(n)]
