"""Runge-Kutta in a chart: Euler and Heun, with churn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffkit import CHARTS, Chart, Denoiser, Level, Noise, Sampler

from .churn import Churn, NonNegative, Plan

ChartName = Literal["sigma", "flow", "angle"]


@dataclass(frozen=True)
class _InChart(Sampler[Plan]):
    """The common part of both methods: chart, churn before each step, state in float64. s_max None means infinity."""

    chart: ChartName = "sigma"
    s_churn: NonNegative = 0.0
    s_min: NonNegative = 0.0
    s_max: NonNegative | None = None
    s_noise: NonNegative = 1.0
    dtype = torch.float64
    law_options = ({"chart": "flow"}, {"chart": "angle"}, {"s_churn": 2.0})
    presets: ClassVar[tuple[tuple[str, Mapping[str, Any]], ...]] = (
        ("diffusers", {"grid": {"name": "linspace", "rounding": "none"}}),
        ("diffusers", {"grid": {"name": "leading", "offset": 1}, "start_scale": "unit"}),
        ("diffusers", {"grid": {"name": "trailing"}}),
        ("diffusers", {"grid": {"name": "karras", "rounding": "none"}}),
    )

    @property
    def law_exemptions(self) -> dict[str, str]:
        """Laws that do not hold for the chosen options, with the reason."""
        if self.chart == "angle":
            reason = "a straight step in the angle is not exact for constant x0 and eps"
            return dict.fromkeys(("point-mass", "point-mass-law", "shift"), reason)
        return {"quiet-end": "churn acts before the last step too"} if self.stochastic else {}

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0.0

    @property
    def reaches_noise(self) -> bool:
        return CHARTS[self.chart].reaches_noise

    def init(self, levels: Sequence[Level]) -> Plan:
        return Plan.of(levels)

    def _begin(self, x: Tensor, t: Level, plan: Plan | None, noise: Noise) -> tuple[Chart, Tensor, Level]:
        """Apply churn: return the chart, x at the raised level, and this level."""
        chart = CHARTS[self.chart]
        chart.check(t)
        most = math.inf if self.s_max is None else self.s_max
        return chart, *Churn(self.s_churn, self.s_min, most, self.s_noise)(x, t, plan, noise)


@dataclass(frozen=True)
class Euler(_InChart):
    """Euler's method in a chart, after churn: x_s / scale_s = x_t / scale_t + (clock_s - clock_t) slope_t.

    With chart `sigma` or `flow` this is DDIM; `angle` is another first-order method. s_max None means infinity.
    The preset of diffusers has `flow`, so that it also starts at the level without signal.
    Source: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2 without lines 6 to 8.
    """

    order = 1
    presets = tuple((library, {**keys, "sampler": {"chart": "flow"}}) for library, keys in _InChart.presets)

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Plan | None, noise: Noise
    ) -> tuple[Tensor, Plan | None]:
        chart, x, t = self._begin(x, t, state, noise)
        return _moved(chart, x, t, s, chart.slope(denoise(x, t))), state


@dataclass(frozen=True)
class Heun(_InChart):
    """An Euler step, repeated with the mean of the slopes at both ends; the step to clean data is a plain Euler step.

    Two evaluations per step, one in the last: 2n - 1. Each of the three charts gives another method of second order.
    s_max None means infinity.
    Source: Karras et al. 2022 (arXiv:2206.00364), Algorithms 1 and 2; their chart is `sigma`.
    """

    order = 2

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Plan | None, noise: Noise
    ) -> tuple[Tensor, Plan | None]:
        chart, x, t = self._begin(x, t, state, noise)
        slope = chart.slope(denoise(x, t))
        ahead = _moved(chart, x, t, s, slope)
        if s.is_clean:
            return ahead, state
        return _moved(chart, x, t, s, 0.5 * (slope + chart.slope(denoise(ahead, s)))), state

    def nfe(self, n: int) -> int:
        return 2 * n - 1


def _moved(chart: Chart, x: Tensor, t: Level, s: Level, slope: Tensor) -> Tensor:
    """x at s for a constant slope in the chart."""
    scale = float(chart.scale(s))
    return (x * (scale / float(chart.scale(t)))).add(slope, alpha=scale * float(chart.clock(s) - chart.clock(t)))
