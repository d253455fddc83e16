"""DPM-Solver++ singlestep of second order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler, scalar, transition


@dataclass(frozen=True)
class DPMpp2S(Sampler[None]):
    """DPM-Solver++(2S), without history: x0 + (x0_u - x0) / (2 r), with x0_u at u, the fraction r of the step.

    Two evaluations per step. The step to clean data or from alpha = 0, of infinite h, uses one evaluation and its x0.
    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 1.
    """

    r: Annotated[float, Field(gt=0, le=1)] = 0.5
    order = 2
    law_options = ({"r": 0.3}, {"r": 1.0})

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        estimate, h = denoise(x, t), float(transition.step(t, s))
        if not math.isfinite(h):
            return estimate.step_to(s), None
        u = _at(float(t.half_logsnr) + self.r * h)
        middle = denoise(estimate.step_to(u), u)
        guess = estimate.x0 + (middle.x0 - estimate.x0) / (2.0 * self.r)
        return estimate.with_x0(guess).step_to(s), None

    def nfe(self, n: int) -> int:
        return 2 * n - 1


def _at(half_logsnr: float) -> Level:
    """Return the level of this half_logsnr with alpha^2 + sigma^2 = 1."""
    angle = math.atan(float(scalar.exp(-half_logsnr)))
    return Level(math.cos(angle), math.sin(angle))
