"""Laws of training times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.schedule import Schedule
from diffkit.times import Times, at_fraction


@dataclass(frozen=True)
class Stratified(Times):
    """One t in each of B equal parts of the schedule: u_i = (i + U_i) / B. Uniform on the whole, less variance.

    Source: Kingma et al. 2021 (arXiv:2107.00630), app. I.1. Differs: there one shared U shifts all.
    """

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        i = torch.arange(len(uniform), device=uniform.device, dtype=torch.float64)
        return at_fraction((i + uniform.double()) / len(uniform), schedule)
