"""Adams methods in a chart: multistep without logarithms, so that both ends of the path are ordinary points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from diffkit import CHARTS, Denoiser, Level, Sampler
from diffkit.sampler import Noise

from .coefficients import REMEMBERED, Known, weights

LAST = 2
"""The highest order of a step to clean data: nothing is asked there, so no corrector follows."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the last step began in the chart, corrected, its clock, and the slopes known there."""

    y: Tensor
    clock: float
    known: Known


@dataclass(frozen=True)
class Adams(Sampler[Memory]):
    """Adams-Bashforth of order p on y = x / scale of a chart, then Adams-Moulton with the slope asked at its result.

    y_s = y_t + int P(clock) dclock, P the polynomial through the last p slopes; once the next slope is known, at the
    point predicted, the step is repeated with it, which costs no evaluation and makes the order p + 1 from an exact
    history. The `angle` chart has d(x / r) / d angle = v, and starts at pure noise and ends at clean data without a
    special case. Started with orders 1, 2, ...; the step to clean data is of order 2 at most.
    Source: Adams methods of variable step: Hairer, Norsett & Wanner 1993, sec. III.5; in v: Salimans & Ho 2022
    (arXiv:2202.00512), app. D; the slope that is kept uncorrected: Zhao et al. 2023 (arXiv:2302.04867), Algorithm 1.
    """

    order: Literal[1, 2, 3, 4] = 3
    chart: Literal["sigma", "flow", "angle"] = "angle"
    corrector: bool = True
    law_options = ({"order": 4}, {"order": 2, "chart": "flow"}, {"chart": "sigma", "corrector": False})

    @property
    def reaches_noise(self) -> bool:  # type: ignore[override]
        return CHARTS[self.chart].reaches_noise

    @property
    def law_exemptions(self) -> dict[str, str]:
        reason = "a straight step in the angle is not exact for constant x0 and eps"
        return dict.fromkeys(("point-mass", "point-mass-law", "shift"), reason) if self.chart == "angle" else {}

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Memory | None, noise: Noise
    ) -> tuple[Tensor, Memory]:
        chart = CHARTS[self.chart]
        chart.check(t)
        here, there = float(chart.clock(t)), float(chart.clock(s))
        y = x / float(chart.scale(t))
        known: Known = ((here, chart.slope(denoise(x, t))),)
        if state is not None:
            if self.corrector:
                y = _advanced(state.y, (*state.known, *known), state.clock, here)
            known = (*known, *state.known)[: self.order]
        used = known[:LAST] if s.is_clean else known
        return float(chart.scale(s)) * _advanced(y, used, here, there), Memory(y, here, known)


def _advanced(y: Tensor, known: Known, start: float, end: float) -> Tensor:
    """y moved by the integral from `start` to `end` of the polynomial through the slopes, in a new tensor."""
    first, *rest = zip(_shares(start, end, tuple(clock for clock, _ in known)), (slope for _, slope in known))
    moved = y.add(first[1], alpha=first[0])
    for share, slope in rest:
        moved.add_(slope, alpha=share)
    return moved


@lru_cache(maxsize=REMEMBERED)
def _shares(start: float, end: float, clocks: tuple[float, ...]) -> list[float]:
    """The factors of the slopes at `clocks` in the integral."""
    span = end - start
    integrals = [1.0 / (k + 1) for k in range(len(clocks))]
    return [span * weight for weight in weights(integrals, [(clock - start) / span for clock in clocks])]
