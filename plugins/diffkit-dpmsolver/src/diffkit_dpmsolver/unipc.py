"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diffkit import Level, transition

from .coefficients import moments, output_factors
from .linear import OF_DIFFUSERS, Multistep, Step


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC: UniP of order p predicts x_s; UniC repeats the step with the x0 at x_s, which is stored unchanged.

    With p + 1 nodes and an exact history the corrector raises the order to p + 1; `order` = p is that of the predictor
    alone (`corrector: false`), and of a cold start (identity F1 of docs/theory/identities.md). Two nodes have one
    coefficient, for which the paper uses B / 2: variant `bh1` with B = h, `bh2` with B = exp(h) - 1 times exp(-h), in
    x0; `exact` solves for it as for more nodes. The step to clean data returns x0.
    Source: Zhao et al. 2023 (arXiv:2302.04867), Algorithms 1 and 2, sec. 3.4 (data prediction: app. A).
    Differs: the coefficients solve the paper's system in closed form, and a step of infinite h returns x0, so that bh1
    stays finite. B of bh1 grows with h: use bh1 with short steps only.
    """

    order: Literal[1, 2, 3] = 3
    variant: Literal["bh1", "bh2", "exact"] = "bh2"
    corrector: bool = True
    law_options = ({"order": 1}, {"order": 2}, {"variant": "exact", "corrector": False})
    presets = tuple((library, {**keys, "sampler": {"order": 2}}) for library, keys in OF_DIFFUSERS)

    @property
    def remembers(self) -> int:
        return self.order

    def corrects(self, before: Level, t: Level, s: Level) -> bool:
        return self.corrector and not s.is_clean and math.isfinite(transition.step(before, t))

    def factors(self, t: Level, s: Level, levels: tuple[Level, ...]) -> Step:
        h, count = float(transition.step(t, s)), sum(math.isfinite(level.half_logsnr) for level in levels)
        keep = float(s.sigma) / float(t.sigma)
        return Step(keep, output_factors(t, s, keep, levels, self.integrals(h, count)))

    def integrals(self, h: float, count: int) -> list[float]:
        """Compute the integrals of powers of tau; with two nodes the second is B / 2 for the variants bh1 and bh2."""
        exact = moments(h, count)
        if count == 2 and self.variant != "exact":
            exact[1] = 0.5 * (h if self.variant == "bh1" else exact[0])
        return exact
