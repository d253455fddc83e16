"""Distributions of training times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import UNIFORM_TIMES, Schedule, Times


@dataclass(frozen=True)
class Stratified(Times):
    """Times of `inner` (uniform by default) from one number per stratum of the batch: u_i = (i + U_i) / B.

    The distribution over many batches is that of `inner`, with less variance within a batch. Source: Kingma et al. 2021
    (arXiv:2107.00630), app. I.1. Differs: a separate U_i for each stratum in place of one shared U.
    """

    inner: Times = UNIFORM_TIMES

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        i = torch.arange(len(uniform), device=uniform.device, dtype=torch.float64)
        return self.inner.draw((i + uniform.double()) / len(uniform), schedule)

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        """Return the correction of `inner`."""
        return self.inner.correction(t, schedule)

    def update(self, t: Tensor, each: Tensor) -> None:
        """Pass the losses to `inner`."""
        self.inner.update(t, each)
