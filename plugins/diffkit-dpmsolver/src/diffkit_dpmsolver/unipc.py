"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from diffkit import Denoiser, Level, Sampler, transition
from diffkit.sampler import Noise

from .coefficients import REMEMBERED, Known, advanced, moments, shares


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the last step began, corrected, and the outputs known there."""

    x: Tensor
    level: Level
    known: Known


@dataclass(frozen=True)
class UniPC(Sampler[Memory]):
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

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Memory | None, noise: Noise
    ) -> tuple[Tensor, Memory]:
        known: Known = ((float(t.half_logsnr), denoise(x, t).x0),)
        if state is not None:
            known = (*known, *state.known)
            if self.corrector and not s.is_clean and math.isfinite(transition.step(state.level, t)):
                x = self._advance(state.x, state.level, t, known)
            known = known[: self.order]
        return self._advance(x, t, s, known), Memory(x, t, known)

    def integrals(self, h: float, count: int) -> list[float]:
        """The moments, the second replaced by B / 2 where there are two nodes and the variant says so."""
        exact = moments(h, count)
        if count == 2 and self.variant != "exact":
            exact[1] = 0.5 * (h if self.variant == "bh1" else exact[0])
        return exact

    def _advance(self, x: Tensor, t: Level, s: Level, known: Known) -> Tensor:
        """x at s by the polynomial through `known`; the newest x0 as it is where h is infinite."""
        keep, factors = _coefficients(self, t, s, tuple(clock for clock, _ in known))
        return advanced(x, keep, [x0 for _, x0 in known], factors)


@lru_cache(maxsize=REMEMBERED)
def _coefficients(sampler: UniPC, t: Level, s: Level, clocks: tuple[float, ...]) -> tuple[float, list[float]]:
    """(factor of x, factors of the outputs)."""
    h, count = float(transition.step(t, s)), sum(math.isfinite(clock) for clock in clocks)
    keep = float(s.sigma) / float(t.sigma)
    return keep, shares(t, s, keep, clocks, sampler.integrals(h, count))
