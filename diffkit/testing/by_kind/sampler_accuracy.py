"""Laws of the accuracy of samplers, and of what must not change a sample: scale, rotation, shift, order of pixels."""

from __future__ import annotations

import dataclasses
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
from ..order import measure, single_steps
from .sampler import POINT, Recorded, on, walk, wide_path

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
    if sampler.consistency:
        raise NotApplicable("the denoiser is a consistency function: see the law marginal")
    steps = (80, 160, 320) if case.deep else (40, 80, 160)
    fit = measure(sampler, steps, exact_starts=sampler.order)
    listed = ", ".join(f"{n}: {error:.3g}" for n, error in zip(fit.steps, fit.errors, strict=True))
    result.note(max(0.0, sampler.order - fit.slope), f"slope {fit.slope:.2f} (errors {listed})", f"{sampler.order}")
    result.holds(fit.errors[-1] < 0.05, f"error {fit.errors[-1]:.3g} in {fit.steps[-1]} steps", "< 0.05")


@law(
    "sampler",
    statement="the error of one step after an exact history falls with the order + 1, on steps of unequal length",
    source="Hairer, Norsett & Wanner 1993, sec. III.5",
    tolerance=SHORTFALL,
    identities="E4 F1",
)
def local_order(case: Case, result: LawResult) -> None:
    """The weights of earlier slopes depend on the ratios of the steps; grids of papers and few steps are uneven.

    A whole run on a smooth grid does not show it: its ratios tend to 1, and errors of single steps may cancel.
    """
    sampler: Sampler[Any] = case.component
    if sampler.stochastic or sampler.discrete_only or sampler.consistency:
        raise NotApplicable("not a deterministic method on any levels")
    fit, want = single_steps(sampler), sampler.order + 1
    found = f"slope {fit.slope:.2f} (errors {fit.errors[0]:.3g}, of half the lengths {fit.errors[1]:.3g})"
    result.note(max(0.0, want - fit.slope), found, f"{want}")


@law(
    "sampler",
    statement="on Gaussian data the distribution of the samples converges to the exact one, with the declared order",
    source="identities D4, D5, D9",
    tolerance=0.3,
    identities="D4 D5 D9 D15",
)
def marginal(case: Case, result: LawResult) -> None:
    """`probe` computes A, b and Q of the whole run, so the distribution is exact: N(A M + b, A C A^T + Q).

    The error reported is the declared order, at most 2, less the slope of log error against log n. A method with a
    fixed number of steps inside of a step has an error that does not fall with n; its integer options grow with n then.
    With an exact consistency function the distribution is exact for every n.
    """
    sampler: Sampler[Any] = on(case.component, fixtures.gaussian())
    if sampler.discrete_only:
        raise NotApplicable("the sampler works on discrete schedules only")
    steps = (24, 48, 96)
    if sampler.consistency:
        for n in (1, 2, 5):
            gap = _gap(sampler, n)
            result.note(gap if gap > 1e-9 else 0.0, f"error {gap:.3g} in {n} steps", "0: every n is exact")
            result.holds(gap < 1e-9, f"error {gap:.3g} in {n} steps", "0")
        return
    want = min(sampler.order, 2)
    for refined in (False, True):
        errors = [_gap(_refined(sampler, n // steps[0]) if refined else sampler, n) for n in steps]
        slope = math.inf if errors[-1] < 1e-11 else math.log(errors[-2] / errors[-1]) / math.log(2.0)
        if want - slope <= result.tolerance or _refined(sampler, 2) is sampler:
            break
    listed = ", ".join(f"{n}: {error:.3g}" for n, error in zip(steps, errors, strict=True))
    result.note(max(0.0, want - slope), f"slope {slope:.2f} (errors {listed})", f"{want}")
    result.holds(errors[-1] < 0.05, f"error {errors[-1]:.3g} in {steps[-1]} steps", "< 0.05")


def _gap(sampler: Sampler[Any], n: int) -> float:
    """Return the largest error of mean and covariance after n steps on Gaussian data."""
    oracle = fixtures.gaussian()
    eye = torch.eye(2, dtype=torch.float64)
    levels = fixtures.path(n, clean=False, uneven=False)
    at, end = (
        Normal(level.alpha * oracle.mean, level.alpha**2 * oracle.matrix + level.sigma**2 * eye)
        for level in (levels[0], levels[-1])
    )
    denoise = fixtures.Endpoint(oracle) if sampler.consistency else oracle
    try:
        run = probe(fixtures.with_aux(sampler, denoise), sampler, levels, 2).push(at)
    except NotAffineError as error:
        raise NotApplicable(str(error)) from error
    return max(
        float((run.mean - end.mean).abs().max()),
        float((run.covariance - end.covariance).abs().max()),
    )


def _refined(sampler: Sampler[Any], factor: int) -> Sampler[Any]:
    """Return a sampler with its integer options, such as the steps of an inner loop, times `factor`."""
    if not sampler.stochastic or not dataclasses.is_dataclass(sampler) or isinstance(sampler, type):
        return sampler
    values = {one.name: getattr(sampler, one.name) for one in dataclasses.fields(sampler)}
    counts = {name: value * factor for name, value in values.items() if type(value) is int and name != "order"}
    return dataclasses.replace(sampler, **counts) if counts else sampler


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
    sampler = on(sampler, oracle)
    eye = torch.eye(2, dtype=torch.float64)
    for levels in (*(fixtures.path(n, clean=False) for n in (1, 2, 3, 6)), wide_path()[:-1]):
        start, end, n = levels[0], levels[-1], len(levels) - 1
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
    """No direction is special. A sampler that learns from data may differ as much as for another sample of the data."""
    sampler: Sampler[Any] = case.component
    turn = torch.linalg.qr(torch.tensor([[0.6, -1.0], [1.3, 0.4]], dtype=torch.float64)).Q
    x, levels = case.normal(3, 2), walk(case, 7)
    plain, turned = (fixtures.mixture(turn=one) for one in (None, turn))
    want, again = (
        sample(fixtures.with_aux(sampler, plain), on(sampler, plain, seed), levels, x, noise=Recorded()) @ turn.T
        for seed in (0, 1)
    )
    noise = Recorded(change=lambda z: z @ turn.T)
    got = sample(fixtures.with_aux(sampler, turned), on(sampler, turned), levels, x @ turn.T, noise=noise)
    chance = 4.0 * float((again - want).abs().max())
    result.compare(torch.where((got - want).abs() <= chance, want, got), want, "a turned sample")


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
    x, plain = case.normal(3, 2), on(sampler, fixtures.mixture())
    for clean in (True, False):
        levels = walk(case, 7, clean=clean)
        want = (
            sample(fixtures.with_aux(sampler, fixtures.mixture()), plain, levels, x, noise=Recorded())
            + levels[-1].alpha * c
        )
        moved = fixtures.with_aux(sampler, fixtures.mixture(shift=c))
        got = sample(moved, on(sampler, fixtures.mixture(shift=c)), levels, x + levels[0].alpha * c, noise=Recorded())
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
