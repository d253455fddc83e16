"""The times of the schedulers of diffusers as a grid."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from diffkit import Grid, Schedule

from .options import defaults_of
from .sampler import SCHEDULERS, SchedulerName


@dataclass(frozen=True)
class DiffusersTimes(Grid):
    """The times that a scheduler of diffusers visits in n steps of a discrete schedule, then clean data.

    scheduler   its class in diffusers, as some count the same spacing in different ways
    spacing     its option timestep_spacing; the times of `leading` start below T
    offset      its option steps_offset, added to the times of `leading`
    Raises ValueError if the scheduler lacks the spacing. Source: `set_timesteps` of the scheduler in the installed
    diffusers. Differs: times are rounded to distinct integers from 1 to T.
    """

    scheduler: SchedulerName = "DDIMScheduler"
    spacing: Literal["leading", "linspace", "trailing"] = "leading"
    offset: Annotated[int, Field(ge=0)] = 0
    discrete_only = True
    declares_deficit = True
    law_options = (
        {"scheduler": "DPMSolverMultistepScheduler", "spacing": "linspace"},
        {"scheduler": "PNDMScheduler", "offset": 1},
        {"scheduler": "HeunDiscreteScheduler", "spacing": "trailing"},
    )

    def __post_init__(self) -> None:
        self._arguments(1)

    def points(self, schedule: Schedule, n: int) -> list[float]:
        assert schedule.steps is not None
        scheduler = self._class()(**self._arguments(schedule.steps))
        scheduler.set_timesteps(n)
        times = scheduler.timesteps.tolist()
        if SCHEDULERS[self.scheduler].visits != "once":
            times = list(dict.fromkeys(times))
        times = [min(time + 1.0, float(schedule.steps)) for time in times[:n]]
        return times + [1.0] * (n - len(times))

    def _class(self) -> Any:
        return getattr(importlib.import_module("diffusers"), self.scheduler)

    def _arguments(self, steps: int) -> dict[str, Any]:
        known = defaults_of(self._class())
        if ("timestep_spacing" not in known and self.spacing != "linspace") or "beta_start" not in known:
            raise ValueError(f"spacing: {self.scheduler} has no spacing {self.spacing}")
        wanted = {"timestep_spacing": self.spacing, "steps_offset": self.offset, "skip_prk_steps": True}
        return {"num_train_timesteps": steps} | {name: value for name, value in wanted.items() if name in known}
