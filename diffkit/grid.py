"""Grids: which levels a sampler visits.

A grid answers n + 1 levels, noisiest first, the last one clean; it knows nothing of the sampler. On a discrete
schedule its points are rounded to integers and then pushed apart, so every n from 1 to T gives n + 1 distinct times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .errors import UsageError
from .level import Level
from .schedule import Schedule


class Grid(ABC):
    """Implement `points`. `discrete_only` grids need a discrete schedule; others with `reaches_noise` False end
    before alpha = 0; `declares_deficit` says that the first point may lie before the end of the schedule."""

    discrete_only: bool = False
    reaches_noise: bool = True
    declares_deficit: bool = False

    @abstractmethod
    def points(self, schedule: Schedule, n: int) -> list[float]:
        """The n times at which the denoiser is asked, noisiest first, before rounding; none is clean."""

    def levels(self, schedule: Schedule, n: int) -> list[Level]:
        """n + 1 levels of host floats, the signal-to-noise ratio rising strictly, the last one clean.

        Raises UsageError where n < 1, or n > T on a discrete schedule, or the schedule is not one for this grid.
        """
        times = self.times(schedule, n)
        return [*(schedule.level(t) for t in times), schedule.clean]

    def times(self, schedule: Schedule, n: int) -> list[float]:
        """The n times of `levels` but the clean one; whole numbers on a discrete schedule."""
        if n < 1:
            raise UsageError(f"a grid of {n} steps is empty", code="DK020", fix="use at least 1 step")
        if schedule.steps is None:
            if self.discrete_only:
                raise UsageError(
                    f"the grid {type(self).__name__.lower()} is defined by the steps of a discrete schedule",
                    code="DK021",
                    fix="use the grid trailing or linspace",
                )
            return self.points(schedule, n)
        if n > schedule.steps:
            raise UsageError(
                f"{n} steps on a schedule of {schedule.steps} would visit a level twice",
                code="DK022",
                fix=f"use at most {schedule.steps} steps",
            )
        return [float(t) for t in push_apart([round_half_up(t) for t in self.points(schedule, n)], schedule.steps)]


def round_half_up(t: float) -> int:
    """The nearest integer, halves upwards, whatever the parity."""
    return int(t + 0.5)


def push_apart(times: list[int], steps: int) -> list[int]:
    """The nearest strictly falling whole times in [1, steps], leaving what is distinct already where it is.

    From the noisy end each time is at most one less than its neighbour before; from the clean end at least one more.
    """
    n = len(times)
    out = list(times)
    for i in range(n):
        highest = steps if i == 0 else out[i - 1] - 1
        out[i] = min(out[i], highest)
    for i in reversed(range(n)):
        lowest = 1 if i == n - 1 else out[i + 1] + 1
        out[i] = max(out[i], lowest)
    return out
