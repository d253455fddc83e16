"""The usual grids of times. They differ in the density of steps along the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from diffkit import Grid, Rounding, Schedule

Intervals = Literal["n", "n+1"]
"""The number of steps whose times are taken: n, or n + 1 without the cleanest time."""


@dataclass(frozen=True, kw_only=True)
class _Equal(Grid):
    """The common part of equally spaced grids: the option `end`."""

    end: Literal["clean", "first"] = "clean"

    @property
    def ends_clean(self) -> bool:
        return self.end == "clean"

    @property
    def discrete_only(self) -> bool:
        return self.end == "first"


@dataclass(frozen=True, kw_only=True)
class Linspace(_Equal):
    """A grid of n equally spaced times from T to 1, both included, then clean data: t_j = T - (T - 1) j / (n - 1).

    On a continuous schedule, equal parts from t_noise down to clean data, or to t_clean if the level there is noisy.

    intervals   `n`, or `n+1`: the times of n + 1 steps without the last, t_j = T - (T - 1) j / n
    rounding    of times of a discrete schedule: halves up, halves to even counted from 0 as numpy rounds, or none, so
                that the network receives times between those of its training
    end         `clean`, or `first`: sampling ends at t = 1, and its noise stays in the samples
    Source: Ho et al. 2020 (arXiv:2006.11239), with n = T; `n+1` and `half-even` are DPM-Solver++ in diffusers, `none`
    is Euler there. Differs: diffusers' DDIM and DDPM step by T // n, not to the next point.
    """

    intervals: Intervals = "n"
    rounding: Rounding = "half-up"
    law_options = ({"intervals": "n+1", "rounding": "half-even"}, {"rounding": "none"}, {"end": "first"})

    def points(self, schedule: Schedule, n: int) -> list[float]:
        low = 1.0 if schedule.steps is not None else schedule.t_clean
        high = schedule.t_noise
        open_end = schedule.steps is None and schedule.level(schedule.t_clean).is_clean
        parts = n if open_end or self.intervals == "n+1" else n - 1
        if parts == 0:
            return [high]
        if self.rounding == "half-even" and schedule.steps is not None:  # as numpy computes them: halves are at stake
            return [1.0 + (parts - j) * ((high - 1.0) / parts) for j in range(n)]
        return [(high * (parts - j) + low * j) / parts for j in range(n)]


@dataclass(frozen=True, kw_only=True)
class Trailing(_Equal):
    """A grid of equally spaced times counted from the noisy end of the schedule: t_j = T (1 - j / n), j = 0..n-1.

    end   `clean`, or `first`: sampling ends at t = 1, and its noise stays in the samples
    Source: Lin et al. 2023 (arXiv:2305.08891), sec. 3.3.
    Differs: exact for every n, where diffusers' arange gives n + 1 times for 62 values of n <= 1000.
    """

    law_options = ({"end": "first"},)

    def points(self, schedule: Schedule, n: int) -> list[float]:
        span = schedule.t_noise - schedule.t_clean
        return [schedule.t_noise - span * j / n for j in range(n)]


@dataclass(frozen=True, kw_only=True)
class Leading(_Equal):
    """A grid of multiples of an integer stride: t_j = (n - 1 - j) floor(T / n) + 1 + offset, j = 0..n-1. The first time
    is below T.

    offset      added to every time: steps_offset of diffusers
    intervals   `n`, or `n+1`: the times of n + 1 steps without the last, t_j = (n - j) floor(T / (n + 1)) + 1 + offset
    end         `clean`, or `first`: sampling ends at t = 1, and its noise stays in the samples
    Source: Song et al. 2021 (arXiv:2010.02502), code; the default of most samplers in diffusers, `n+1` that of its
    DPM-Solver++ and UniPC, and `first` its set_alpha_to_one: false.
    """

    offset: Annotated[int, Field(ge=0)] = 0
    intervals: Intervals = "n"
    discrete_only = True
    declares_deficit = True
    law_options = ({"offset": 1, "end": "first"}, {"intervals": "n+1", "offset": 1})

    def points(self, schedule: Schedule, n: int) -> list[float]:
        assert schedule.steps is not None
        taken = n if self.intervals == "n" else n + 1
        stride = schedule.steps // taken
        return [float((taken - 1 - j) * stride + 1 + self.offset) for j in range(n)]


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
