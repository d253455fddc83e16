"""Churn: add noise before each step, which corrects errors of earlier steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from diffkit import Level, Noise

NonNegative = Annotated[float, Field(ge=0)]
MAX_GAMMA = math.sqrt(2.0) - 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that churn needs from a run: the number of steps, and sigma / alpha of the first level."""

    count: int
    ceiling: float

    @classmethod
    def of(cls, levels: Sequence[Level]) -> Plan:
        return cls(len(levels) - 1, float(levels[0].ratio))


@dataclass(frozen=True)
class Churn:
    """Raise the noise by gamma = min(s_churn / n, sqrt(2) - 1) if s_min <= sigma / alpha <= s_max.

    Sigma becomes sigma_hat = sigma (1 + gamma) and alpha does not change: x + s_noise sqrt(sigma_hat^2 - sigma^2) z,
    which has the distribution of the raised level if s_noise = 1 (identity F7 of docs/theory/identities.md).
    Source: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2.
    Differs: the noise never exceeds that of the first level, since networks are not trained beyond it.
    """

    s_churn: float
    s_min: float
    s_max: float
    s_noise: float

    def __call__(self, x: Tensor, t: Level, plan: Plan | None, noise: Noise) -> tuple[Tensor, Level]:
        """Add noise to x: (B, C, *S) at t; return x at the raised level, and this level."""
        ratio = float(t.ratio)
        if self.s_churn == 0.0 or plan is None or t.is_noise or not self.s_min <= ratio <= self.s_max:
            return x, t
        grown = min(1.0 + min(self.s_churn / plan.count, MAX_GAMMA), plan.ceiling / ratio)
        if grown <= 1.0:
            return x, t
        raised = Level(t.alpha, t.sigma * grown)
        std = self.s_noise * float(t.sigma) * math.sqrt(grown**2 - 1.0)
        return x.add(noise(x), alpha=std), raised
