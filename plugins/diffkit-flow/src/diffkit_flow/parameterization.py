"""Two predictions that say something at both ends of the path."""

from __future__ import annotations

from dataclasses import dataclass

from diffkit import Level, Parameterization, Scalar, scalar


@dataclass(frozen=True)
class Flow(Parameterization):
    """y = eps - x0, the row (-1, 1): the velocity dx/dt on `rectified`, a name for this difference elsewhere.

    Source: Liu et al. 2023 (arXiv:2209.03003), eq. 1. Differs: the sign is that of t = 1 being noise.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return -1.0, 1.0


@dataclass(frozen=True)
class V(Parameterization):
    """y = (alpha eps - sigma x0) / r, r = hypot(alpha, sigma), which is 1 on variance-preserving schedules.

    A rotation of (x0, eps) by the angle of the level, hence decoded without amplification at every level.
    Source: Salimans & Ho 2022 (arXiv:2202.00512), sec. 4 and app. D.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        r = level.scale
        return scalar.divide(-level.sigma, r), scalar.divide(level.alpha, r)
