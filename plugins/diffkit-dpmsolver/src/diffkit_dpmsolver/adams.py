"""Adams methods in a chart: multistep without logarithms, so that both ends of the path are regular points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffkit import CHARTS, Estimate, Level

from .coefficients import weights
from .linear import Multistep, Step

MAX_LAST_ORDER = 2
"""Highest order of the step to clean data: there is no evaluation at its end, so no corrector follows."""


@dataclass(frozen=True)
class Adams(Multistep):
    """Adams-Bashforth of order p in a chart (y = x / scale), then Adams-Moulton with the slope at the predicted point.

    y_s = y_t + int P(clock) dclock with the polynomial P through the last p slopes. When the slope at the predicted
    point is known, the step is repeated with it: this costs no evaluation and raises the order to p + 1 if the history
    is exact. In the `angle` chart d(x / r) / d angle = v, which starts at pure noise and ends at clean data without a
    special case. The first steps have orders 1, 2, ...; the step to clean data has order 2 at most.
    Source: Adams methods of variable step: Hairer, Norsett & Wanner 1993, sec. III.5; in v: Salimans & Ho 2022
    (arXiv:2202.00512), app. D; slopes stored without correction: Zhao et al. 2023 (arXiv:2302.04867), Algorithm 1.
    """

    order: Literal[1, 2, 3, 4] = 3
    chart: Literal["sigma", "flow", "angle"] = "angle"
    corrector: bool = True
    law_options = ({"order": 4}, {"order": 2, "chart": "flow"}, {"chart": "sigma", "corrector": False})

    @property
    def reaches_noise(self) -> bool:
        return CHARTS[self.chart].reaches_noise

    @property
    def law_exemptions(self) -> dict[str, str]:
        reason = "a straight step in the angle is not exact for constant x0 and eps"
        return dict.fromkeys(("point-mass", "point-mass-law", "shift"), reason) if self.chart == "angle" else {}

    @property
    def remembers(self) -> int:
        return self.order

    def init(self, levels: Sequence[Level]) -> None:
        CHARTS[self.chart].check(levels[0])

    def output(self, estimate: Estimate) -> Tensor:
        """Return the slope of the estimate in the chart, which later steps use."""
        return CHARTS[self.chart].slope(estimate)

    def corrects(self, before: Level, t: Level, s: Level) -> bool:
        return self.corrector

    def factors(self, t: Level, s: Level, levels: tuple[Level, ...]) -> Step:
        chart = CHARTS[self.chart]
        chart.check(t)
        used = levels[:MAX_LAST_ORDER] if s.is_clean else levels
        start, scale = float(chart.clock(t)), float(chart.scale(s))
        span = float(chart.clock(s)) - start
        nodes = [(float(chart.clock(level)) - start) / span for level in used]
        integrals = [1.0 / (k + 1) for k in range(len(nodes))]
        return Step(scale / float(chart.scale(t)), [scale * span * weight for weight in weights(integrals, nodes)])
