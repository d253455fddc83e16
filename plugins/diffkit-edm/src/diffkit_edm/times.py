"""Training times that are mostly at middle noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Level, Schedule, Times, nearest_time, normal_quantile


@dataclass(frozen=True)
class LogNormal(Times):
    """Log-normal noise levels: log(sigma / alpha) ~ N(p_mean, p_std^2), on any schedule; levels beyond its ends are
    clamped to the ends.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, P_mean and P_std.
    """

    p_mean: float = -1.2
    p_std: Annotated[float, Field(gt=0)] = 1.2

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        sigma = torch.exp(self.p_mean + self.p_std * normal_quantile(uniform))
        time = schedule.time(Level(torch.ones_like(sigma), sigma))
        return nearest_time(torch.as_tensor(time), schedule)

    def law_reference(self, half_logsnr: float) -> float:
        """Return the density of half_logsnr = -log(sigma / alpha), which laws compare."""
        return math.exp(-0.5 * ((half_logsnr + self.p_mean) / self.p_std) ** 2) / (math.sqrt(2 * math.pi) * self.p_std)
