"""Training times that favour the middle of the path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Level, Schedule, Times, nearest_time, normal_quantile


@dataclass(frozen=True)
class LogitNormal(Times):
    """Logit-normal times: logit(t) ~ N(mean, std^2) on the schedule `rectified`.

    On `rectified` logit(t) equals -half_logsnr; on other schedules -half_logsnr has this normal distribution.

    Levels beyond the ends of the schedule are clamped to the ends. A timestep shift s in training is mean + log s.
    Source: Esser et al. 2024 (arXiv:2403.03206), eq. 19.
    """

    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        logit = self.mean + self.std * normal_quantile(uniform)
        level = Level(torch.sigmoid(-logit), torch.sigmoid(logit))
        return nearest_time(torch.as_tensor(schedule.time(level)), schedule)

    def law_reference(self, half_logsnr: float) -> float:
        """Return the density of half_logsnr, which laws compare."""
        return math.exp(-0.5 * ((half_logsnr + self.mean) / self.std) ** 2) / (math.sqrt(2 * math.pi) * self.std)
