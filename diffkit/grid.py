"""Grids: the levels that a sampler visits.

A grid of n steps has n + 1 levels, noisiest first, the last one clean; it is independent of the sampler. On a discrete
schedule its points are rounded to integers and then pushed apart, so every n from 1 to T gives n + 1 distinct times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .errors import ArgumentError, UsageError
from .interface import attribute
from .level import Level
from .schedule import Schedule


class Grid(ABC):
    """Base of grids. Implement `points`."""

    @attribute
    def discrete_only(self) -> bool:
        """Whether the grid is defined on discrete schedules only; default False."""
        return False

    @attribute
    def reaches_noise(self) -> bool:
        """Whether the grid can start at alpha = 0 (pure noise); default True."""
        return True

    @attribute
    def declares_deficit(self) -> bool:
        """Whether the first level may have less noise than the end of the schedule; default False."""
        return False

    @abstractmethod
    def points(self, schedule: Schedule, n: int) -> list[float]:
        """Return the n times at which the denoiser is evaluated, before rounding; noisiest first, none of them clean.

        Args:
            schedule: The schedule of the model.
            n: Number of steps, at least 1.

        Returns:
            n times in (t_clean, t_noise].
        """

    def levels(self, schedule: Schedule, n: int) -> list[Level]:
        """Return the n + 1 levels that a sampler visits.

        Args:
            schedule: The schedule of the model.
            n: Number of steps; at most T on a discrete schedule.

        Returns:
            Levels of floats with strictly increasing signal-to-noise ratio; the last one is clean.

        Raises:
            UsageError: n is out of range (DK020, DK022), or the grid needs a discrete schedule (DK021).
            ArgumentError: `schedule` is not a Schedule, or n is not an int.
        """
        if not isinstance(schedule, Schedule):
            raise ArgumentError.of(
                "levels(schedule, n): argument 1 (`schedule`)", "a Schedule", schedule, "check the order"
            )
        return [*(schedule.level(t) for t in self.times(schedule, n)), schedule.clean]

    def times(self, schedule: Schedule, n: int) -> list[float]:
        """Return the times of `levels` without the clean one; whole numbers on a discrete schedule."""
        if not isinstance(n, int):
            raise ArgumentError.of("levels(schedule, n): argument 2 (`n`)", "an int", n, "pass the number of steps")
        if n < 1:
            raise UsageError(f"a grid of {n} steps is empty", code="DK020", fix="use at least 1 step")
        if schedule.steps is None:
            if self.discrete_only:
                raise UsageError(
                    f"the grid {type(self).__name__.lower()} requires a discrete schedule",
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
    """Return the nearest integer to t >= 0, halves rounded up."""
    return int(t + 0.5)


def push_apart(times: list[int], steps: int) -> list[int]:
    """Return strictly decreasing integers in [1, steps] near `times`; times that are distinct already are kept.

    A first pass from the noisy end makes each time less than the one before; a second pass from the clean end makes
    each time greater than the one after.
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
