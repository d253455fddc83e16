"""A discrete schedule, stretched until its last level is pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from diffkit import Discrete, Schedule, build


@dataclass(frozen=True)
class ZeroSNR(Discrete):
    """alpha'_t = (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T) of the schedule `inner`: alpha'_1 = alpha_1, and
    alpha'_T = 0, where eps says nothing about x0 and a network has to predict v, flow or x0.

    Raises ValueError where `inner` is continuous or has one step only.
    Source: Lin et al. 2024 (arXiv:2305.08891), Algorithm 1.
    """

    inner: Schedule

    def __post_init__(self) -> None:
        if self.inner.steps is None:
            raise ValueError("zero-snr stretches a discrete schedule: give one with steps (linear), or use rectified")
        if self.inner.steps < 2:
            raise ValueError("zero-snr needs two steps at least: the first stays as it is, the last becomes noise")
        alpha = torch.as_tensor(self.inner.level(torch.arange(self.inner.steps + 1)).alpha).double()
        first, last = alpha[1], alpha[-1]
        # The step into alpha'_1 is that of `inner`; each ratio after it is free of the common factor.
        ratios = (alpha[2:] - last) / (alpha[1:-1] - last)
        steps = torch.cat([-torch.expm1(2.0 * torch.log(first))[None], 1.0 - ratios**2])
        Discrete.__init__(self, steps)

    @staticmethod
    def law_example(folder: Path) -> ZeroSNR:
        """What the laws are applied to."""
        return ZeroSNR(build("schedule", "scaled-linear"))
