"""Levels that training visits: mostly the middle ones, where there is something to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Level, Schedule, Times
from diffkit.times import nearest

HALF_GAP = 2.0**-25
"""Half of the distance between two float32 numbers of the stream, which may be 0, where the quantile is -inf."""


@dataclass(frozen=True)
class LogNormal(Times):
    """log(sigma / alpha) ~ N(p_mean, p_std^2), on any schedule; levels beyond its ends become the ends.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, P_mean and P_std.
    """

    p_mean: float = -1.2
    p_std: Annotated[float, Field(gt=0)] = 1.2

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        normal = torch.special.ndtri(uniform.double() + HALF_GAP)
        sigma = torch.exp(self.p_mean + self.p_std * normal)
        time = schedule.time(Level(torch.ones_like(sigma), sigma))
        return nearest(torch.as_tensor(time), schedule)
