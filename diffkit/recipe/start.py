"""Starting to sample before the end of the schedule (`sample.start`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..level import Level
from ..scalar import Scalar
from ..schedule import Schedule


@dataclass(frozen=True)
class Until(Schedule):
    """The part of a schedule from clean to time `start`; levels, times and indices are those of the whole.

    Raises ValueError unless t_clean < start <= t_noise, and on a discrete schedule where start is not whole.
    """

    whole: Schedule
    start: float

    def __post_init__(self) -> None:
        if not self.whole.t_clean < self.start <= self.whole.t_noise:
            raise ValueError(
                f"start is {self.start:g}, outside of the schedule ({self.whole.t_clean:g}, {self.whole.t_noise:g}]"
            )
        if self.whole.steps is not None and self.start != int(self.start):
            raise ValueError(f"start is {self.start:g}; a discrete schedule starts at a whole step")

    @property
    def t_clean(self) -> float:  # type: ignore[override]
        return self.whole.t_clean

    @property
    def t_noise(self) -> float:  # type: ignore[override]
        return self.start

    @property
    def steps(self) -> int | None:  # type: ignore[override]
        return None if self.whole.steps is None else int(self.start)

    def level(self, t: Scalar) -> Level:
        return self.whole.level(t)

    def time(self, level: Level) -> Scalar:
        return self.whole.time(level)

    def index(self, t: Scalar) -> Scalar:
        return self.whole.index(t)


def sampled(schedule: Schedule, start: float | None) -> Schedule:
    """The part of `schedule` that sampling visits: all of it, or that up to `start`."""
    return schedule if start is None else Until(schedule, start)


def default_steps(schedule: Schedule) -> int:
    """How many steps sampling takes where the recipe says nothing: all of a discrete schedule, else 100."""
    return schedule.steps if schedule.steps is not None else 100
