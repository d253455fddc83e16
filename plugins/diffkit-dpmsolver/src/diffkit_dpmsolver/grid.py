"""A grid with equal steps of log-SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffkit import Grid, Level, LevelError, Schedule

SLACK = 1e-9
"""How far beyond the ends of the schedule, in half_logsnr, is taken for rounding."""

NEARLY_CLEAN = -math.log(0.002)
"""Where the grid ends on a schedule that reaches clean data: sigma / alpha = 0.002."""


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    """n times with half_logsnr in equal steps from `start` to `end`, then clean.

    `start` and `end` are half_logsnr, by default those of the schedule's ends; where that is clean data, `end` is
    -log 0.002. Raises LevelError where the schedule starts at alpha = 0 and no `start` is given, for its half_logsnr
    is -inf; with one, the grid starts cleaner than the schedule ends. Source: Lu et al. 2022 (arXiv:2206.00927),
    sec. 3.3.
    """

    start: float | None = None
    end: float | None = None

    @property
    def reaches_noise(self) -> bool:  # type: ignore[override]
        return self.start is not None

    @property
    def declares_deficit(self) -> bool:  # type: ignore[override]
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
                "uniform-logsnr cannot start at alpha = 0, where the logarithm of the signal-to-noise ratio is -inf",
                code="DK507",
                fix="give the grid a start (start: -4.0), or end the schedule before (sample.start)",
            )
        last = self.end
        if last is None:
            cleanest = schedule.level(1.0 if schedule.steps is not None else schedule.t_clean)
            last = NEARLY_CLEAN if cleanest.is_clean else float(cleanest.half_logsnr)
        low, high = (float(level.half_logsnr) for level in (schedule.noise, schedule.level(schedule.t_clean)))
        rises = first < last or (first == last and schedule.steps == 1)
        if not (rises and low - SLACK <= first and last <= high + SLACK):
            raise LevelError(
                f"uniform-logsnr runs from half_logsnr {first:.4g} to {last:.4g}; the schedule, "
                f"from {low:.4g} to {high:.4g}",
                code="DK508",
                fix="let start lie below end, and both on the schedule",
            )
        return first, last
