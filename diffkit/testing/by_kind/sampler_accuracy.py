"""Laws of the accuracy of samplers, and of what must not change a sample: scale, rotation, shift, order of pixels."""

from __future__ import annotations

import math
from typing import Any

import torch

from diffkit.level import Level
from diffkit.sampler import Sampler, sample

from ...oracles.gaussian import GaussianOracle
from .. import fixtures
from ..affine import Normal, NotAffineError, probe
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..order import measure
from .sampler import POINT, Recorded, walk

SHORTFALL = 0.25


@law(
    "sampler",
    statement="the error against the exact probability flow falls with the declared order",
    source="identities F1, E4",
    tolerance=SHORTFALL,
    identities="E4 F1 F1b",
)
def order(case: Case, result: LawResult) -> None:
    """On a mixture the flow is the quantile map. Multistep methods start on exact states.

    The error reported is the declared order less the slope of the two finest grids.
    """
    sampler: Sampler[Any] = case.component
    if sampler.stochastic:
        raise NotApplicable("stochastic: see the law marginal")
    if sampler.discrete_only:
        raise NotApplicable("the sampler works on discrete schedules only")
    steps = (80, 160, 320) if case.deep else (40, 80, 160)
    fit = measure(sampler, steps, exact_starts=sampler.order)
    listed = ", ".join(f"{n}: {error:.3g}" for n, error in zip(fit.steps, fit.errors, strict=True))
    result.note(max(0.0, sampler.order - fit.slope), f"slope {fit.slope:.2f} (errors {listed})", f"{sampler.order}")
    result.holds(fit.errors[-1] < 0.05, f"error {fit.errors[-1]:.3g} in {fit.steps[-1]} steps", "< 0.05")


@law(
    "sampler",
    statement="on Gaussian data the distribution of the samples converges to the exact one",
    source="identities D4, D5, D9",
    tolerance=0.3,
    identities="D4 D5 D9 D15",
)
def marginal(case: Case, result: LawResult) -> None:
    """`probe` computes A, b and Q of the whole run, so the distribution is exact: N(A M + b, A C A^T + Q).

    The error reported is 1 (or the order of a deterministic one) less the slope of log error against log n.
    """
    sampler: Sampler[Any] = case.component
    if sampler.discrete_only:
        raise NotApplicable("the sampler works on discrete schedules only")
    oracle = fixtures.gaussian()
    eye = torch.eye(2, dtype=torch.float64)
    want_order = 1 if sampler.stochastic else sampler.order
    steps, errors = (24, 48, 96), []
    for n in steps:
        levels = fixtures.path(n, clean=False, uneven=False)
        at, end = (
            Normal(level.alpha * oracle.mean, level.alpha**2 * oracle.matrix + level.sigma**2 * eye)
            for level in (levels[0], levels[-1])
        )
        try:
            law_of_run = probe(fixtures.with_aux(sampler, oracle), sampler, levels, 2).push(at)
        except NotAffineError as error:
            raise NotApplicable(str(error)) from error
        gap = max(
            float((law_of_run.mean - end.mean).abs().max()),
            float((law_of_run.covariance - end.covariance).abs().max()),
        )
        errors.append(gap)
    listed = ", ".join(f"{n}: {error:.3g}" for n, error in zip(steps, errors, strict=True))
    slope = math.inf if errors[-1] < 1e-11 else math.log(errors[-2] / errors[-1]) / math.log(2.0)
    result.note(max(0.0, min(want_order, 2) - slope), f"slope {slope:.2f} (errors {listed})", f"{min(want_order, 2)}")
    result.holds(errors[-1] < 0.05, f"error {errors[-1]:.3g} in {steps[-1]} steps", "< 0.05")


@law(
    "sampler",
    statement="if the data is one point c, samples at a level with noise are N(alpha c, sigma^2 I), for every n",
    source="Song et al. 2021 (arXiv:2010.02502), Lemma 1; identities B3",
    tolerance=1e-9,
    identities="B3 F2 F7",
)
def point_mass_law(case: Case, result: LawResult) -> None:
    """x0* is exact, so a step that preserves q(x_s | x0) preserves the marginal, for every size of the step."""
    sampler: Sampler[Any] = case.component
    if sampler.discrete_only:
        raise NotApplicable("the sampler works on discrete schedules only")
    oracle = GaussianOracle(POINT, 0.0)
    eye = torch.eye(2, dtype=torch.float64)
    for n in (1, 2, 3, 6):
        levels = fixtures.path(n, clean=False)
        start, end = levels[0], levels[-1]
        try:
            run = probe(fixtures.with_aux(sampler, oracle, 0.0), sampler, levels, 2)
        except NotAffineError as error:
            raise NotApplicable(str(error)) from error
        got = run.push(Normal(start.alpha * POINT, start.sigma**2 * eye))
        result.compare(got.mean, end.alpha * POINT, f"mean after {n} steps")
        result.compare(got.covariance, end.sigma**2 * eye, f"covariance after {n} steps", 1e-2)


@law(
    "sampler",
    statement="rescaling the levels by any c_i does not change the sample, with the same noise",
    source="Karras et al. 2022 (arXiv:2206.00364), app. B; identities A8",
    tolerance=1e-9,
    identities="A8",
)
def rescaling(case: Case, result: LawResult) -> None:
    """(x0, eps) does not depend on the scale of x, so VP, VE and flow differ by scale only."""
    sampler: Sampler[Any] = case.component
    if sampler.discrete_only:
        raise NotApplicable("the sampler works on discrete schedules only")
    denoise = fixtures.with_aux(sampler, fixtures.mixture())
    x = case.normal(3, 2)
    for clean in (True, False):
        levels = fixtures.path(7, clean=clean)
        want = sample(denoise, sampler, levels, x, noise=Recorded()) / levels[-1].alpha
        rescaled = {
            "exploding": [1.0 / float(level.alpha) for level in levels],
            "flow": [1.0 / (float(level.alpha) + float(level.sigma)) for level in levels],
            "random scales": [1.0 + 0.5 * ((7 * i) % 5) for i in range(len(levels))],
        }
        for title, scales in rescaled.items():
            there = [Level(float(v.alpha) * c, float(v.sigma) * c) for v, c in zip(levels, scales, strict=True)]
            got = sample(denoise, sampler, there, x * scales[0], noise=Recorded()) / there[-1].alpha
            result.compare(got, want, f"{title}, {'to clean data' if clean else 'to a noisy level'}")


@law(
    "sampler",
    statement="rotating the data, the start and the noise rotates the sample",
    source="identities F8",
    tolerance=1e-9,
    identities="F8",
)
def rotation(case: Case, result: LawResult) -> None:
    """No direction is special."""
    sampler: Sampler[Any] = case.component
    turn = torch.linalg.qr(torch.tensor([[0.6, -1.0], [1.3, 0.4]], dtype=torch.float64)).Q
    x, levels = case.normal(3, 2), walk(case, 7)
    want = sample(fixtures.with_aux(sampler, fixtures.mixture()), sampler, levels, x, noise=Recorded()) @ turn.T
    turned = fixtures.with_aux(sampler, fixtures.mixture(turn=turn))
    got = sample(turned, sampler, levels, x @ turn.T, noise=Recorded(change=lambda z: z @ turn.T))
    result.compare(got, want, "a turned sample")


@law(
    "sampler",
    statement="shifting the data by c, and the start by alpha c, shifts the sample by c",
    source="identities F8",
    tolerance=1e-9,
    identities="F8",
)
def shift(case: Case, result: LawResult) -> None:
    """x = alpha x0 + sigma eps: eps does not move, so every combination that keeps the marginals moves x by alpha c."""
    sampler: Sampler[Any] = case.component
    c = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = case.normal(3, 2)
    for clean in (True, False):
        levels = walk(case, 7, clean=clean)
        want = (
            sample(fixtures.with_aux(sampler, fixtures.mixture()), sampler, levels, x, noise=Recorded())
            + levels[-1].alpha * c
        )
        moved = fixtures.with_aux(sampler, fixtures.mixture(shift=c))
        got = sample(moved, sampler, levels, x + levels[0].alpha * c, noise=Recorded())
        result.compare(got, want, f"a shifted sample, {'on clean data' if clean else 'at a noisy level'}")


@law(
    "sampler",
    statement="if dimensions are independent and identically distributed, reordering them reorders the sample",
    source="identities F8",
    tolerance=1e-9,
)
def reordering(case: Case, result: LawResult) -> None:
    """A sampler does not mix pixels."""
    sampler: Sampler[Any] = case.component
    oracle = fixtures.with_aux(sampler, GaussianOracle(0.2, 0.4))
    order = torch.randperm(12, generator=case.generator("order"))
    x, levels = case.normal(2, 12), walk(case, 5)
    want = sample(oracle, sampler, levels, x, noise=Recorded())[:, order]
    got = sample(oracle, sampler, levels, x[:, order], noise=Recorded(change=lambda z: z[:, order]))
    result.compare(got, want, "reordered dimensions")
    flat = sample(oracle, sampler, levels, x, noise=Recorded())
    deep = sample(oracle, sampler, levels, x.reshape(2, 3, 2, 2), noise=Recorded(change=lambda z: z))
    result.holds(deep.shape == (2, 3, 2, 2), f"images became {tuple(deep.shape)}", "the same shape")
    if not sampler.stochastic:
        result.compare(deep.reshape(2, 12), flat, "images of the same numbers")
