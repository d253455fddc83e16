"""Laws of how near samplers come to the exact law and the exact flow."""

from __future__ import annotations

import math
from typing import Any

import torch

from diffkit.sampler import Sampler

from ...oracles.gaussian import GaussianOracle
from .. import families
from ..affine import Normal
from ..affine_probe import NotAffineError, probe
from ..law_registry import Inapplicable, Worst, law
from ..order import measure
from ..subject import Subject
from .sampler import POINT, equipped

SHORTFALL = 0.25


@law(
    "sampler",
    statement="the error against the exact probability flow falls with the order that is declared",
    source="identities F1, E4",
    tolerance=SHORTFALL,
    identities="E4 F1 F1b",
)
def order(subject: Subject, worst: Worst) -> None:
    """On a mixture the flow is the quantile map. Multistep methods begin on exact states, so that only they are fitted.

    The error reported is the declared order less the slope of the two finest grids.
    """
    sampler: Sampler[Any] = subject.component
    if sampler.stochastic:
        raise Inapplicable("stochastic: held to convergence in law instead")
    if sampler.discrete_only:
        raise Inapplicable("it works on discrete schedules only")
    steps = (80, 160, 320) if subject.deep else (40, 80, 160)
    fit = measure(sampler, steps, exact_starts=sampler.order)
    told = ", ".join(f"{n}: {error:.3g}" for n, error in zip(fit.steps, fit.errors, strict=True))
    worst.note(max(0.0, sampler.order - fit.slope), f"slope {fit.slope:.2f} (errors {told})", f"{sampler.order}")
    worst.holds(fit.errors[-1] < 0.05, f"error {fit.errors[-1]:.3g} in {fit.steps[-1]} steps", "a small one")


@law(
    "sampler",
    statement="started on the exact law of Gaussian data, the law of the samples converges to the exact one",
    source="identities D4, D5, D9",
    tolerance=0.3,
    identities="D4 D5 D9 D15",
)
def marginal(subject: Subject, worst: Worst) -> None:
    """A, b and Q of the whole run are read off the real sampler, so its law is exact: (A M + b, A C A^T + Q).

    The error reported is 1 (or the order of a deterministic one) less the slope of log error against log n.
    """
    sampler: Sampler[Any] = subject.component
    if sampler.discrete_only:
        raise Inapplicable("it works on discrete schedules only")
    oracle = families.gaussian()
    eye = torch.eye(2, dtype=torch.float64)
    want_order = 1 if sampler.stochastic else sampler.order
    steps, errors = (24, 48, 96), []
    for n in steps:
        levels = families.path(n, clean=False, uneven=False)
        at, end = (
            Normal(level.alpha * oracle.mean, level.alpha**2 * oracle.matrix + level.sigma**2 * eye)
            for level in (levels[0], levels[-1])
        )
        try:
            law_of_run = probe(equipped(sampler, oracle), sampler, levels, 2).push(at)
        except NotAffineError as error:
            raise Inapplicable(str(error)) from error
        gap = max(
            float((law_of_run.mean - end.mean).abs().max()),
            float((law_of_run.covariance - end.covariance).abs().max()),
        )
        errors.append(gap)
    told = ", ".join(f"{n}: {error:.3g}" for n, error in zip(steps, errors, strict=True))
    slope = math.inf if errors[-1] < 1e-11 else math.log(errors[-2] / errors[-1]) / math.log(2.0)
    worst.note(max(0.0, min(want_order, 2) - slope), f"slope {slope:.2f} (errors {told})", f"{min(want_order, 2)}")
    worst.holds(errors[-1] < 0.05, f"error {errors[-1]:.3g} in {steps[-1]} steps", "a small one")


@law(
    "sampler",
    statement="where the data is one point c, levels with noise have the exact law N(alpha c, sigma^2 I), for every n",
    source="Song et al. 2021 (arXiv:2010.02502), Lemma 1; identities B3",
    tolerance=1e-9,
    identities="B3 F2 F7",
)
def point_mass_law(subject: Subject, worst: Worst) -> None:
    """x0* is exact, so a step that keeps q(x_s | x0) keeps the marginal, however long it is."""
    sampler: Sampler[Any] = subject.component
    if sampler.discrete_only:
        raise Inapplicable("it works on discrete schedules only")
    oracle = GaussianOracle(POINT, 0.0)
    eye = torch.eye(2, dtype=torch.float64)
    for n in (1, 2, 3, 6):
        levels = families.path(n, clean=False)
        start, end = levels[0], levels[-1]
        try:
            run = probe(equipped(sampler, oracle, 0.0), sampler, levels, 2)
        except NotAffineError as error:
            raise Inapplicable(str(error)) from error
        got = run.push(Normal(start.alpha * POINT, start.sigma**2 * eye))
        worst.compare(got.mean, end.alpha * POINT, f"mean after {n} steps")
        worst.compare(got.covariance, end.sigma**2 * eye, f"covariance after {n} steps", 1e-2)
