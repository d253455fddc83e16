"""The EDM parameterization: the network predicts the error of a linear guess of x0, scaled to unit variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Level, Parameterization, Scalar, scalar


@dataclass(frozen=True)
class EDM(Parameterization):
    """Predict the EDM output F = (x0 - c_skip y) / c_out, y = x / alpha.

    The coefficients of (x0, eps) are (sigma / sd, -sd alpha) / r with r = hypot(sigma, sd alpha).

    With sg = sigma / alpha and sd = `sigma_data`, the standard deviation of the data: c_skip = sd^2 / (sg^2 + sd^2),
    c_out = sg sd / sqrt(sg^2 + sd^2), the input is y / sqrt(sg^2 + sd^2) = x / r, and c_noise is log(sg) / 4.
    F is -v if sd = 1. Source: Karras et al. 2022 (arXiv:2206.00364), table 1 and app. B.6.
    """

    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    law_options = ({"sigma_data": 1.0},)

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        r = self._deviation(level)
        return level.sigma / (self.sigma_data * r), -self.sigma_data * level.alpha / r

    def c_in(self, level: Level) -> Scalar:
        return 1.0 / self._deviation(level)

    def c_noise(self, level: Level) -> Scalar:
        return -0.25 * level.half_logsnr

    def _deviation(self, level: Level) -> Scalar:
        """hypot(sigma, sd alpha), the standard deviation of x."""
        return scalar.hypot(level.sigma, self.sigma_data * level.alpha)
