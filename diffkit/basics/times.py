"""Laws of training times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.schedule import Schedule
from diffkit.times import UNIFORM_TIMES, Times


@dataclass(frozen=True)
class Stratified(Times):
    """The times of `inner` from one number in each of B equal parts of [0, 1): u_i = (i + U_i) / B.

    The same law of times over many batches, by default uniform, with less variance in each. Source: Kingma et al. 2021
    (arXiv:2107.00630), app. I.1. Differs: there one shared U shifts all.
    """

    inner: Times = UNIFORM_TIMES

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        i = torch.arange(len(uniform), device=uniform.device, dtype=torch.float64)
        return self.inner.draw((i + uniform.double()) / len(uniform), schedule)

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        """That of `inner`, whose law it keeps."""
        return self.inner.correction(t, schedule)

    def update(self, t: Tensor, each: Tensor) -> None:
        """`inner` learns."""
        self.inner.update(t, each)
