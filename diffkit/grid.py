"""Grids: the levels that a sampler visits.

A grid of n steps has n + 1 levels, noisiest first, the last one clean; it is independent of the sampler. On a discrete
schedule its points are rounded to integers and then pushed apart, so every n from 1 to T gives n + 1 distinct times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from .errors import ArgumentError, UsageError
from .interface import attribute
from .level import Level
from .schedule import Schedule, default_steps

Rounding = Literal["half-up", "half-even", "none"]
"""How points between the steps of a discrete schedule become whole; halves to even are counted from 0, as by numpy."""


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

    @attribute
    def ends_clean(self) -> bool:
        """Whether the last level is clean data; default True. Otherwise it is t = 1 of a discrete schedule."""
        return True

    @attribute
    def rounding(self) -> Rounding:
        """How points become whole times of a discrete schedule; `none` keeps the times between them."""
        return "half-up"

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
            n: Number of steps; at most T on a discrete schedule, T - 1 if the last level is t = 1.

        Returns:
            Levels of floats with strictly increasing signal-to-noise ratio; the last one is clean or t = 1.

        Raises:
            UsageError: n is out of range (DK020, DK022), or the grid needs a discrete schedule (DK021).
            ArgumentError: `schedule` is not a Schedule, or n is not an int.
        """
        if not isinstance(schedule, Schedule):
            raise ArgumentError.of(
                "levels(schedule, n): argument 1 (`schedule`)", "a Schedule", schedule, "check the order"
            )
        last = schedule.clean if self.ends_clean else schedule.level(1.0)
        return [*(schedule.level(t) for t in self.times(schedule, n)), last]

    def times(self, schedule: Schedule, n: int) -> list[float]:
        """Return the times of `levels` without the last one; whole numbers on a discrete schedule, unless `rounding` is
        none.
        """
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
        least = 1 if self.ends_clean else 2
        if n > (most := self.all_steps(schedule)):
            message = f"{n} steps on a schedule of {schedule.steps} would visit a level twice"
            raise UsageError(message, code="DK022", fix=f"use at most {most} steps")
        points = self.points(schedule, n)
        if self.rounding == "none":
            return points
        whole = [1 + round(t - 1.0) if self.rounding == "half-even" else round_half_up(t) for t in points]
        return [float(t) for t in push_apart(whole, schedule.steps, least)]

    def all_steps(self, schedule: Schedule) -> int:
        """Return the default number of steps: the largest that a discrete schedule allows, else 100."""
        return default_steps(schedule) - (schedule.steps is not None and not self.ends_clean)


def round_half_up(t: float) -> int:
    """Return the nearest integer to t >= 0, halves rounded up."""
    return int(t + 0.5)


def push_apart(times: list[int], steps: int, least: int = 1) -> list[int]:
    """Return strictly decreasing integers in [least, steps] near `times`; times that are distinct already are kept.

    A first pass from the noisy end makes each time less than the one before; a second pass from the clean end makes
    each time greater than the one after.

    Args:
        times: Integers, the noisiest first.
        steps: Largest time.
        least: Smallest time.

    Returns:
        As many integers.
    """
    n = len(times)
    out = list(times)
    for i in range(n):
        highest = steps if i == 0 else out[i - 1] - 1
        out[i] = min(out[i], highest)
    for i in reversed(range(n)):
        lowest = least if i == n - 1 else out[i + 1] + 1
        out[i] = max(out[i], lowest)
    return out
