"""Charts: coordinates in which the slope of the probability-flow ODE is a simple function of the estimate.

In a chart, d(x / scale) / d clock = slope(estimate). A Runge-Kutta or Adams-Bashforth method is a tableau in a chart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import scalar
from .errors import LevelError
from .estimate import Estimate
from .level import Level
from .scalar import Scalar


@dataclass(frozen=True)
class Chart:
    """Coordinates in which samplers solve the probability-flow ODE: its state x / scale, its time `clock`, its slope.

    name            the name in recipes
    scale           factor of x as a function of the level
    clock           time of the ODE as a function of the level
    slope           d(x / scale) / d clock as a function of the estimate: (B, *S)
    reaches_noise   whether scale and clock are finite at alpha = 0
    """

    name: str
    scale: Callable[[Level], Scalar]
    clock: Callable[[Level], Scalar]
    slope: Callable[[Estimate], Tensor]
    reaches_noise: bool = True

    def check(self, level: Level) -> None:
        """Raise LevelError if the level is pure noise (alpha = 0) and the chart does not reach it."""
        if level.is_noise and not self.reaches_noise:
            others = " or ".join(sorted(name for name, chart in CHARTS.items() if chart.reaches_noise))
            raise LevelError(
                f"chart {self.name} cannot start at alpha = 0, where sigma / alpha is infinite",
                code="DK507",
                fix=f"use chart {others}, or start sampling with less noise (sample.start)",
            )

    def __repr__(self) -> str:
        return self.name.upper()


def _flow_scale(level: Level) -> Scalar:
    return level.alpha + level.sigma


def _rotation(estimate: Estimate) -> Tensor:
    level, scale = estimate.level, estimate.level.scale
    return estimate.combine(-level.sigma / scale, level.alpha / scale)


SIGMA = Chart(
    "sigma",
    scale=lambda level: level.alpha,
    clock=lambda level: level.ratio,
    slope=lambda estimate: estimate.eps,
    reaches_noise=False,
)
"""d(x / alpha) / d(sigma / alpha) = eps. An Euler step in this chart is exact for constant x0 and eps.

Source: Karras et al. 2022 (arXiv:2206.00364), eq. 4.
"""

FLOW = Chart(
    "flow",
    scale=_flow_scale,
    clock=lambda level: scalar.divide(level.sigma, _flow_scale(level)),
    slope=lambda estimate: estimate.combine(-1.0, 1.0),
)
"""d(x / (alpha + sigma)) / d(sigma / (alpha + sigma)) = eps - x0. Its Euler step is that of SIGMA, also from alpha = 0.

Source: Liu et al. 2023 (arXiv:2209.03003), eq. 1.
"""

ANGLE = Chart("angle", scale=lambda level: level.scale, clock=lambda level: level.angle, slope=_rotation)
"""d(x / r) / d angle = cos(angle) eps - sin(angle) x0 = v, r = hypot(alpha, sigma).

Source: Salimans & Ho 2022 (arXiv:2202.00512), app. D.
"""

CHARTS = {chart.name: chart for chart in (SIGMA, FLOW, ANGLE)}
