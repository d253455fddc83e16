"""Two grids for few steps: equal steps in log-SNR, and powers of the angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Grid, Level, LevelError, Schedule

SLACK = 1e-9
"""Distance beyond the ends of the schedule, in half_logsnr, that counts as rounding."""

NEARLY_CLEAN = -math.log(0.002)
"""half_logsnr of the last point on a schedule that reaches clean data: sigma / alpha = 0.002."""


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    """A grid of n times with equally spaced half_logsnr from `start` to `end`, then clean data.

    `start` and `end` are half_logsnr, by default those of the schedule's ends; if the schedule ends at clean data,
    `end` is -log 0.002. Raises LevelError if the schedule starts at alpha = 0 and `start` is not given, as half_logsnr
    is -inf there; with `start`, the grid begins with less noise than the schedule.
    Source: Lu et al. 2022 (arXiv:2206.00927), sec. 3.3.
    """

    start: float | None = None
    end: float | None = None

    @property
    def reaches_noise(self) -> bool:
        return self.start is not None

    @property
    def declares_deficit(self) -> bool:
        return self.start is not None

    def points(self, schedule: Schedule, n: int) -> list[float]:
        first, last = self._ends(schedule)
        clocks = [first + (last - first) * i / max(n - 1, 1) for i in range(n)]
        times = [float(schedule.time(Level(1.0, math.exp(-clock)))) for clock in clocks]
        return [min(max(t, schedule.t_clean), schedule.t_noise) for t in times]

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        first = float(schedule.noise.half_logsnr) if self.start is None else self.start
        if first == -math.inf:
            raise LevelError(
                "uniform-logsnr cannot start at alpha = 0: half_logsnr is -inf there",
                code="DK507",
                fix="set start (start: -4.0), or start sampling with less noise (sample.start)",
            )
        last = self.end
        if last is None:
            cleanest = schedule.level(1.0 if schedule.steps is not None else schedule.t_clean)
            last = NEARLY_CLEAN if cleanest.is_clean else float(cleanest.half_logsnr)
        low, high = (float(level.half_logsnr) for level in (schedule.noise, schedule.level(schedule.t_clean)))
        rises = first < last or (first == last and schedule.steps == 1)
        if not (rises and low - SLACK <= first and last <= high + SLACK):
            raise LevelError(
                f"uniform-logsnr goes from half_logsnr {first:.4g} to {last:.4g}, but the schedule "
                f"from {low:.4g} to {high:.4g}",
                code="DK508",
                fix="choose start < end, both within the schedule",
            )
        return first, last


@dataclass(frozen=True)
class Angle(Grid):
    """A grid of n times at the angles a_clean + (a_noise - a_clean) (1 - i / n)^power, i = 0..n-1, then clean data.

    The angle is atan2(sigma, alpha), finite at both ends of every schedule. With power 1 the steps are equal; a larger
    power makes them shorter near clean data. Designed for sampler `adams` and good for other samplers too, as measured
    in docs/choose-a-sampler.md.
    """

    power: Annotated[float, Field(gt=0)] = 1.75
    law_options = ({"power": 1.0},)

    def points(self, schedule: Schedule, n: int) -> list[float]:
        clean, noise = float(schedule.level(schedule.t_clean).angle), float(schedule.noise.angle)
        angles = [clean + (noise - clean) * (1.0 - i / n) ** self.power for i in range(1, n)]
        return [schedule.t_noise, *(float(schedule.time(Level(math.cos(a), math.sin(a)))) for a in angles)]
