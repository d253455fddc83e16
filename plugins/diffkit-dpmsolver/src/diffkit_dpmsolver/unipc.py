"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diffkit import Level, transition

from .coefficients import moments, shares
from .linear import Multistep, Step


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniP of order p predicts x_s; once x0 is asked there, UniC repeats the step with it, and it is kept as it is.

    With p + 1 nodes the corrector makes the order p + 1, from an exact history; `order` = p is what the predictor has
    alone (`corrector: false`), and what a cold start keeps (identity F1). Two nodes have one coefficient, for which
    the paper takes B / 2: variant `bh1` with B = h, `bh2` with B = exp(h) - 1 times exp(-h), in x0; `exact` solves
    for it as for more nodes. The step to clean data takes x0.
    Source: Zhao et al. 2023 (arXiv:2302.04867), Algorithms 1 and 2, sec. 3.4 (data prediction: app. A).
    Differs: the coefficients solve the paper's system in closed form, and a step of infinite h takes x0, so that bh1
    stays finite there. It still grows with h, so leave it to short steps.
    """

    order: Literal[1, 2, 3] = 3
    variant: Literal["bh1", "bh2", "exact"] = "bh2"
    corrector: bool = True
    law_options = ({"order": 1}, {"order": 2}, {"variant": "exact", "corrector": False})

    @property
    def remembers(self) -> int:
        return self.order

    def corrects(self, before: Level, t: Level, s: Level) -> bool:
        return self.corrector and not s.is_clean and math.isfinite(transition.step(before, t))

    def factors(self, t: Level, s: Level, levels: tuple[Level, ...]) -> Step:
        h, count = float(transition.step(t, s)), sum(math.isfinite(level.half_logsnr) for level in levels)
        keep = float(s.sigma) / float(t.sigma)
        return Step(keep, shares(t, s, keep, levels, self.integrals(h, count)))

    def integrals(self, h: float, count: int) -> list[float]:
        """The moments, the second replaced by B / 2 where there are two nodes and the variant says so."""
        exact = moments(h, count)
        if count == 2 and self.variant != "exact":
            exact[1] = 0.5 * (h if self.variant == "bh1" else exact[0])
        return exact
