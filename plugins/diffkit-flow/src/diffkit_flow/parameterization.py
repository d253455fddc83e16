"""Velocity predictions, which determine x0 and eps at both ends of the path."""

from __future__ import annotations

from dataclasses import dataclass

from diffkit import Level, Parameterization, Scalar, scalar


@dataclass(frozen=True)
class Flow(Parameterization):
    """Predict y = eps - x0, coefficients (-1, 1): the velocity dx/dt on `rectified`, the same on every schedule.

    Source: Liu et al. 2023 (arXiv:2209.03003), eq. 1. Differs: the sign, as t = 1 is noise here.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return -1.0, 1.0


@dataclass(frozen=True)
class V(Parameterization):
    """Predict the velocity v: y = (alpha eps - sigma x0) / r, r = hypot(alpha, sigma), which is 1 on
    variance-preserving schedules.

    A rotation of (x0, eps) by the angle of the level, so that decoding amplifies no error at any level.
    Source: Salimans & Ho 2022 (arXiv:2202.00512), sec. 4 and app. D.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        r = level.scale
        return scalar.divide(-level.sigma, r), scalar.divide(level.alpha, r)
