"""Laws of samplers with canonical names: their exact steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from diffkit.level import Level
from diffkit.sampler import Sampler

from ...oracles.gaussian import GaussianOracle
from .. import families
from ..affine import Affine
from ..affine_probe import probe
from ..law_registry import Inapplicable, Worst, law
from ..order import measure, polynomial_error
from ..subject import Subject
from .sampler import equipped

HO, SONG = "Ho et al. 2020 (arXiv:2006.11239)", "Song et al. 2021 (arXiv:2010.02502)"
Step = Callable[[GaussianOracle, Level, Level], Affine]


def chain(oracle: GaussianOracle, levels: Sequence[Level], step: Step) -> Affine:
    """All steps in turn."""
    d = oracle.dimensions
    eye, zero = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    whole = Affine(eye, zero, 0.0 * eye)
    for t, s in pairwise(levels):
        whole = whole.then(step(oracle, t, s))
    return whole


def matrices(oracle: GaussianOracle, t: Level, s: Level, variance: float, std: float | None = None) -> Affine:
    """One step from scratch: x0* by Bayes' rule, then alpha_s x0* + sqrt(sigma_s^2 - v) (x - alpha_t x0*) / sigma_t."""
    S, m = oracle.matrix, oracle.mean
    eye = torch.eye(len(m), dtype=torch.float64)
    a_t, s_t, a_s, s_s = (float(v) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    G = torch.linalg.solve(a_t**2 * S + s_t**2 * eye, a_t * S).T
    k = math.sqrt(max(s_s**2 - variance, 0.0)) / s_t
    lead = a_s - k * a_t
    spread = variance if std is None else std**2
    return Affine(lead * G + k * eye, lead * (m - a_t * G @ m), spread * eye)


def beta_tilde(t: Level, s: Level) -> float:
    """sigma_s^2 sigma_{t|s}^2 / sigma_t^2."""
    return float(s.sigma) ** 2 * beta(t, s) / float(t.sigma) ** 2


def beta(t: Level, s: Level) -> float:
    """sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2."""
    return float(t.sigma) ** 2 - (float(t.alpha) / float(s.alpha) * float(s.sigma)) ** 2


def walks(subject: Subject) -> list[tuple[str, list[Level]]]:
    """Full and partial grids of a discrete schedule, even and uneven."""
    schedule = families.discrete()
    full = families.discrete(60)
    found = [("60 of 60 steps", [*(full.level(float(t)) for t in range(60, 0, -1)), full.clean])]
    for n in (1, 2, 3, 61, 600) if subject.deep else (1, 2, 3, 61):
        times = sorted({1000 - (i * 997) // n - (i % 3) for i in range(n)}, reverse=True)
        found.append((f"{n} of 1000 steps", [*(schedule.level(float(t)) for t in times), schedule.clean]))
    found.append(("to a noisy level", families.path(5, clean=False)))
    return found


def _hold(subject: Subject, worst: Worst, step: Step, variance_fraction: float = 0.5) -> None:
    sampler: Sampler[Any] = subject.component
    for oracle in (families.gaussian(), GaussianOracle(torch.zeros(2, dtype=torch.float64), 1.0)):
        for title, levels in walks(subject):
            got = probe(equipped(sampler, oracle, variance_fraction), sampler, levels, 2)
            want = chain(oracle, levels, step)
            for name in ("A", "b", "Q"):
                worst.compare(getattr(got, name), getattr(want, name), f"{name} of {title}")


@law(
    "sampler",
    statement="A, b and Q of the run are those of the posterior with variance beta tilde, beta, or between",
    source=f"{HO}, Algorithm 2 and sec. 3.2; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15",
    tolerance=1e-10,
    identities="B1 B2 D5 D6",
    only=("ancestral",),
)
def ancestral_law(subject: Subject, worst: Worst) -> None:
    """The mean is that of q(x_s | x_t, x0*) whatever the variance; the last step, to clean data, adds none."""
    variance_fraction = 0.3

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        small = beta_tilde(t, s)
        if s.is_clean:
            return matrices(oracle, t, s, 0.0)
        large = beta(t, s)
        variance = {
            "small": small,
            "large": large,
            "learned": math.exp(variance_fraction * math.log(large) + (1.0 - variance_fraction) * math.log(small)),
        }[subject.component.variance]
        return matrices(oracle, t, s, small, math.sqrt(variance))

    _hold(subject, worst, step, variance_fraction)


@law(
    "sampler",
    statement="variance `large` keeps N(0, I) exactly at every step; `small` is the posterior of one point",
    source=f"{HO}, sec. 3.2",
    tolerance=1e-10,
    identities="D6 D7",
    only=("ancestral",),
)
def ancestral_extremes(subject: Subject, worst: Worst) -> None:
    """The true reverse variance V_s beta / V_t is beta for unit variance, and beta tilde for none."""
    sampler: Sampler[Any] = subject.component
    if sampler.variance not in ("small", "large"):  # type: ignore[attr-defined]
        raise Inapplicable("its variance is between the extremes")
    large = sampler.variance == "large"  # type: ignore[attr-defined]
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    oracle = GaussianOracle(zero, 1.0 if large else 0.0)
    levels = families.path(9, clean=False)
    run = probe(oracle, sampler, levels, 2)
    start, end = (eye if large else float(level.sigma) ** 2 * eye for level in (levels[0], levels[-1]))
    worst.compare(run.A @ start @ run.A.T + run.Q, end, "covariance after 9 steps")


@law(
    "sampler",
    statement="A, b and Q are those of DDIM: rho = eta sigma_s sqrt(1 - exp(-2h)), eta on the standard deviation",
    source=f"{SONG}, eq. 12, 16",
    tolerance=1e-10,
    identities="B3 D5 F3 F9",
    only=("ddim",),
)
def ddim_law(subject: Subject, worst: Worst) -> None:
    """eta = 0 is the probability-flow step, eta = 1 the ancestral one."""
    eta = float(subject.component.eta)

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        return matrices(oracle, t, s, eta**2 * beta_tilde(t, s))

    _hold(subject, worst, step)


def _clean_chart(subject: Subject) -> str:
    chart = getattr(subject.component, "chart", "sigma")
    return str(getattr(chart, "name", chart))


@law(
    "sampler",
    statement="Euler in sigma / alpha, or on the straight path, is DDIM",
    source="Karras et al. 2022 (arXiv:2206.00364), Algorithm 1; identities A8b",
    tolerance=1e-10,
    identities="A8b D5",
    only=("euler",),
)
def euler_law(subject: Subject, worst: Worst) -> None:
    """alpha and sigma are affine in those clocks, so the straight step is exact for fixed (x0, eps)."""
    if _clean_chart(subject) not in ("sigma", "flow") or subject.component.stochastic:
        raise Inapplicable("its clock is the angle, or it adds noise")
    _hold(subject, worst, lambda oracle, t, s: matrices(oracle, t, s, 0.0))


@law(
    "sampler",
    statement="A = I + d/2 (P1 + P2 (I + d P1)), P = sigma (S + sigma^2)^-1, d = sigma_2 - sigma_1; Euler at last",
    source="Karras et al. 2022 (arXiv:2206.00364), Algorithm 1",
    tolerance=1e-10,
    identities="D5",
    only=("heun",),
)
def heun_law(subject: Subject, worst: Worst) -> None:
    """In x / alpha and sigma / alpha, for centred data; the mean rides along."""
    if _clean_chart(subject) != "sigma" or subject.component.stochastic:
        raise Inapplicable("its clock is another, or it adds noise")

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        eye = torch.eye(oracle.dimensions, dtype=torch.float64)
        now, then = float(t.sigma) / float(t.alpha), float(s.sigma) / float(s.alpha)
        d = then - now
        P1, P2 = (sigma * torch.linalg.inv(oracle.matrix + sigma**2 * eye) for sigma in (now, then or 1.0))
        inner = eye + d * P1 if then == 0.0 else eye + d / 2 * (P1 + P2 @ (eye + d * P1))
        A = float(s.alpha) / float(t.alpha) * inner
        return Affine(A, float(s.alpha) * oracle.mean - float(t.alpha) * A @ oracle.mean, 0.0 * eye)

    _hold(subject, worst, step)


@law(
    "sampler",
    statement="where x0 is a polynomial in half_logsnr of degree below the order, the run is exact",
    source="identities F4",
    tolerance=1e-10,
    identities="F4",
    only=("dpmpp-3m", "unipc"),
)
def polynomial(subject: Subject, worst: Worst) -> None:
    """The phi coefficients integrate the polynomial through the last evaluations; one missing factor shows at once.

    The published third-order coefficients of DPM-Solver++ lack a factor 2 and fail here.
    """
    sampler: Sampler[Any] = subject.component
    if sampler.stochastic:
        raise Inapplicable("its weights are those of the larger step (1 + eta) h")
    if getattr(sampler, "corrector", False) and getattr(sampler, "variant", "exact") != "exact":
        raise Inapplicable("two nodes take B / 2, which is exact to second order only: see variant exact")
    for degree in range(min(3, sampler.order)):
        for n, reach in ((6, 1.0), (5, 4.0)):
            error = polynomial_error(sampler, degree, n, reach)
            worst.note(error / reach**degree, f"degree {degree}, {n} uneven steps over [-{reach}, {reach}]", "0")


@law(
    "sampler",
    statement="with the corrector the order is one more than the predictor's",
    source="Zhao et al. 2023 (arXiv:2302.04867), theorem 3.1",
    tolerance=0.3,
    identities="F1",
    only=("unipc",),
)
def corrected_order(subject: Subject, worst: Worst) -> None:
    """The output at the new point is one node more, and costs nothing."""
    sampler: Sampler[Any] = subject.component
    if not sampler.corrector:  # type: ignore[attr-defined]
        raise Inapplicable("without the corrector")
    fit = measure(sampler, (80, 160), exact_starts=max(2, sampler.order))
    worst.note(max(0.0, sampler.order + 1 - fit.slope), f"slope {fit.slope:.2f}", f"{sampler.order + 1}")


@law(
    "sampler",
    statement="two steps of 2M: D = x0 + (x0 - x0_before) h / (2 h_before), then alpha_s D by the exponential step",
    source="Lu et al. 2022 (arXiv:2211.01095), Algorithm 2",
    tolerance=1e-10,
    identities="D5 F1",
    only=("dpmpp-2m",),
)
def two_multistep(subject: Subject, worst: Worst) -> None:
    """x_s = (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) D; the first step, and that to clean data, use D = x0."""
    if subject.options or subject.component.stochastic:
        raise Inapplicable("held at its defaults")
    oracle = families.gaussian()
    for clean in (False, True):
        levels = families.path(4, clean=clean)
        x = subject.normal(3, 2)
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
        from diffkit.sampler import sample

        got = sample(oracle, subject.component, levels, x)
        worst.compare(got, want, f"4 steps, {'to clean data' if clean else 'to a noisy level'}")
