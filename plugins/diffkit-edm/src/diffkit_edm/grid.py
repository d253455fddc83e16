"""The grid of Karras et al. 2022, with short steps near clean data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from diffkit import Grid, Level, LevelError, Schedule

Positive = Annotated[float, Field(gt=0)]
NEARLY_CLEAN = 0.002
"""sigma / alpha of the last point on a schedule that reaches clean data: the paper's sigma_min."""
SLACK = 1e-9
"""Relative distance beyond the ends of the schedule that counts as rounding."""


@dataclass(frozen=True)
class Karras(Grid):
    """The grid of Karras et al., with short steps near clean data.

    sigma_i = (sigma_max^(1/p) + i / (n - 1) (sigma_min^(1/p) - sigma_max^(1/p)))^p, i = 0..n-1, then clean data; p is
    `power`.

    sigma means sigma / alpha, so that the grid applies to any schedule. By default the ends are those of the schedule;
    if the schedule ends at clean data, sigma_min is 0.002. Raises LevelError if the schedule starts at alpha = 0 and
    sigma_max is not given, or if an end lies outside the schedule.
    rounding   of times of a discrete schedule: halves up, or none, so that the levels are those of the formula
    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 5; p is called rho there.
    """

    power: Positive = 7.0
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None
    rounding: Literal["half-up", "none"] = "half-up"
    law_options = ({"power": 3.0}, {"rounding": "none"})

    @property
    def reaches_noise(self) -> bool:
        return self.sigma_max is not None

    @property
    def declares_deficit(self) -> bool:
        return self.sigma_max is not None

    def points(self, schedule: Schedule, n: int) -> list[float]:
        low, high = (sigma ** (1.0 / self.power) for sigma in self._ends(schedule))
        sigmas = [(high + i / max(n - 1, 1) * (low - high)) ** self.power for i in range(n)]
        times = [float(schedule.time(Level(1.0, sigma))) for sigma in sigmas]
        return [min(max(t, schedule.t_clean), schedule.t_noise) for t in times]

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        noisiest, cleanest = float(schedule.noise.ratio), float(schedule.level(schedule.t_clean).ratio)
        high = self.sigma_max or noisiest
        if high == math.inf:
            raise LevelError(
                "grid karras cannot start at alpha = 0, where sigma / alpha is infinite",
                code="DK507",
                fix="set sigma_max (sigma_max: 80.0), or start sampling with less noise (sample.start)",
            )
        low = self.sigma_min or (float(schedule.level(1.0).ratio) if schedule.steps is not None else cleanest)
        low = low or NEARLY_CLEAN
        if not cleanest * (1 - SLACK) <= low <= high <= noisiest * (1 + SLACK) or (low == high and schedule.steps != 1):
            raise LevelError(
                f"grid karras goes from sigma / alpha = {high:.4g} to {low:.4g}, but the schedule "
                f"from {noisiest:.4g} to {cleanest:.4g}",
                code="DK508",
                fix="choose sigma_min < sigma_max, both within the schedule",
            )
        return low, high
