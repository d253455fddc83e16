"""Laws of the exponential solvers and of the grid with equal steps in half_logsnr."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from diffkit.sampler import Sampler, sample
from diffkit.testing import Case, LawResult, NotApplicable, fixtures, law, measure, polynomial_error


@law(
    "grid",
    statement="half_logsnr is equally spaced between the ends of the schedule",
    source="Lu et al. 2022 (arXiv:2206.00927), sec. 4.3",
    tolerance=1e-9,
    only=("uniform-logsnr",),
)
def logsnr_points(case: Case, result: LawResult) -> None:
    """Every step has the same h."""
    if case.options:
        raise NotApplicable("tested with default options only")
    n = 9
    clocks = [float(level.half_logsnr) for level in case.component.levels(fixtures.EXPLODING, n)[:-1]]
    for i, clock in enumerate(clocks):
        result.compare(clock, clocks[0] + i / (n - 1) * (clocks[-1] - clocks[0]), f"half_logsnr of level {i} of {n}")


@law(
    "sampler",
    statement="if x0 is a polynomial in half_logsnr of degree below the order, the run is exact",
    source="identities F4",
    tolerance=1e-10,
    identities="F4",
    only=("dpmpp-3m", "unipc"),
)
def polynomial(case: Case, result: LawResult) -> None:
    """The phi coefficients integrate the polynomial through the last evaluations.

    The published third-order coefficients of DPM-Solver++ lack a factor 2 and fail here.
    """
    sampler: Sampler[Any] = case.component
    if sampler.stochastic:
        raise NotApplicable("stochastic: the weights are those of a step of (1 + eta) h")
    if getattr(sampler, "corrector", False) and getattr(sampler, "variant", "exact") != "exact":
        raise NotApplicable("two nodes use B / 2, which is exact to second order only; the variant `exact` is tested")
    for degree in range(min(3, sampler.order)):
        for n, reach in ((6, 1.0), (5, 4.0)):
            error = polynomial_error(sampler, degree, n, reach)
            result.note(error / reach**degree, f"degree {degree}, {n} uneven steps over [-{reach}, {reach}]", "0")


@law(
    "sampler",
    statement="with the corrector the order is one more than the predictor's",
    source="Zhao et al. 2023 (arXiv:2302.04867), theorem 3.1",
    tolerance=0.3,
    identities="F1",
    only=("unipc",),
)
def corrected_order(case: Case, result: LawResult) -> None:
    """The corrector reuses the output at the new point, so it raises the order without another evaluation."""
    sampler = case.component
    if not sampler.corrector:
        raise NotApplicable("the corrector is off")
    fit = measure(sampler, (80, 160), exact_starts=max(2, sampler.order))
    result.note(max(0.0, sampler.order + 1 - fit.slope), f"slope {fit.slope:.2f}", f"{sampler.order + 1}")


@law(
    "sampler",
    statement="a step of 2M uses D = x0 + (x0 - x0_before) h / (2 h_before) in the place of x0",
    source="Lu et al. 2022 (arXiv:2211.01095), Algorithm 2",
    tolerance=1e-10,
    identities="D5 F1",
    only=("dpmpp-2m",),
)
def two_multistep(case: Case, result: LawResult) -> None:
    """x_s = (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) D; the first step, and that to clean data, use D = x0."""
    if case.options or case.component.stochastic:
        raise NotApplicable("tested with default options only")
    oracle = fixtures.gaussian()
    for clean in (False, True):
        levels = fixtures.path(4, clean=clean)
        x = case.normal(3, 2)
        want, before, h_before = x, None, 0.0
        for t, s in pairwise(levels):
            x0 = oracle(want, t).x0
            if s.is_clean:
                want = x0
                continue
            h = math.log(s.alpha / s.sigma) - math.log(t.alpha / t.sigma)
            D = x0 if before is None else x0 + (x0 - before) * h / (2.0 * h_before)
            want = s.sigma / t.sigma * want - s.alpha * math.expm1(-h) * D
            before, h_before = x0, h
        got = sample(oracle, case.component, levels, x)
        result.compare(got, want, f"4 steps, {'to clean data' if clean else 'to a noisy level'}")
