"""Laws of the components of Karras et al. 2022: preconditioning, the grid, and exact steps of Euler and Heun."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffkit.level import Level
from diffkit.oracles import GaussianOracle
from diffkit.testing import Affine, Case, LawResult, NotApplicable, fixtures, law
from diffkit.testing.affine import compare_steps, first_order
from diffkit.testing.by_kind.parameterization import compare_target, levels
from diffkit.testing.by_kind.weighting import compare_weight, snr

KARRAS = "Karras et al. 2022 (arXiv:2206.00364)"


@law(
    "parameterization",
    statement="the target is F = (x0 - c_skip y) / c_out, y = x / alpha, sigma_data = 0.5",
    source=f"{KARRAS}, eq. 7, table 1",
    tolerance=1e-10,
    identities="C",
    only=("edm",),
)
def edm_target(case: Case, result: LawResult) -> None:
    """The target is a x0 + b eps with the coefficients (a, b) of the paper, at every level and scale."""

    def target(x0: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
        sd, sg = 0.5, sigma / alpha
        y = x0 + sg * eps
        c_skip, c_out = sd**2 / (sg**2 + sd**2), sg * sd / math.sqrt(sg**2 + sd**2)
        return (x0 - c_skip * y) / c_out

    compare_target(case, result, target)


@law(
    "parameterization",
    statement="c_in x has unit variance for data of deviation sigma_data; c_noise is log(sigma / alpha) / 4",
    source=f"{KARRAS}, table 1",
    tolerance=1e-9,
    identities="C6",
    only=("edm",),
)
def edm_input(case: Case, result: LawResult) -> None:
    """The input is divided by the standard deviation of x: Var(x) = alpha^2 sigma_data^2 + sigma^2."""
    p = case.component
    for level in levels(case):
        a, s = float(level.alpha), float(level.sigma)
        variance = (a * p.sigma_data) ** 2 + s**2
        result.compare(float(p.c_in(level)) ** 2 * variance, 1.0, f"Var(c_in x) at {level}")
        result.compare(float(p.c_noise(level)), 0.25 * math.log(s / a), f"c_noise at {level}")


@law(
    "grid",
    statement="the levels include both ends of the schedule, and sigma^(1/power) is equally spaced between them",
    source=f"{KARRAS}, eq. 5",
    tolerance=1e-9,
    identities="A13",
    only=("karras",),
)
def karras_points(case: Case, result: LawResult) -> None:
    """The levels are sigma_i = (smax^(1/p) + i / (n - 1) (smin^(1/p) - smax^(1/p)))^p, then 0; p = 7 is the default."""
    if case.options:
        raise NotApplicable("tested with default options only")
    n = 9
    levels = case.component.levels(fixtures.EXPLODING, n)[:-1]
    roots = [(float(level.sigma) / float(level.alpha)) ** (1.0 / 7.0) for level in levels]
    for i, root in enumerate(roots):
        result.compare(root, roots[0] + i / (n - 1) * (roots[-1] - roots[0]), f"sigma_{i}^(1/7) of {n}")
    result.compare(roots[0] ** 7, 80.0, "sigma_0")
    result.compare(roots[-1] ** 7, 0.002, f"sigma_{n - 1}", 0.002)


def _clean_chart(case: Case) -> str:
    chart = getattr(case.component, "chart", "sigma")
    return str(getattr(chart, "name", chart))


@law(
    "sampler",
    statement="Euler in sigma / alpha, or on the straight path, equals DDIM",
    source=f"{KARRAS}, Algorithm 1; identities A8b",
    tolerance=1e-10,
    identities="A8b D5",
    only=("euler",),
)
def euler_law(case: Case, result: LawResult) -> None:
    """In both charts x / scale is affine in the clock for fixed (x0, eps), so an Euler step is exact."""
    if _clean_chart(case) not in ("sigma", "flow") or case.component.stochastic:
        raise NotApplicable("the chart is `angle`, or the sampler is stochastic")
    compare_steps(case, result, first_order)


@law(
    "sampler",
    statement="A = I + d/2 (P1 + P2 (I + d P1)), P = sigma (S + sigma^2)^-1, d = sigma_2 - sigma_1; Euler at last",
    source=f"{KARRAS}, Algorithm 1",
    tolerance=1e-10,
    identities="D5",
    only=("heun",),
)
def heun_law(case: Case, result: LawResult) -> None:
    """The map is written in x / alpha and sigma / alpha for data of mean 0; then the mean is added."""
    if _clean_chart(case) != "sigma" or case.component.stochastic:
        raise NotApplicable("the chart is not `sigma`, or the sampler is stochastic")

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        eye = torch.eye(oracle.dimensions, dtype=torch.float64)
        now, then = float(t.sigma) / float(t.alpha), float(s.sigma) / float(s.alpha)
        d = then - now
        P1, P2 = (sigma * torch.linalg.inv(oracle.matrix + sigma**2 * eye) for sigma in (now, then or 1.0))
        inner = eye + d * P1 if then == 0.0 else eye + d / 2 * (P1 + P2 @ (eye + d * P1))
        A = float(s.alpha) / float(t.alpha) * inner
        return Affine(A, float(s.alpha) * oracle.mean - float(t.alpha) * A @ oracle.mean, 0.0 * eye)

    compare_steps(case, result, step)


@law(
    "weighting",
    statement="w = (sigma^2 + sd^2) / (sigma sd)^2, with sigma of x / alpha and sd = sigma_data",
    source=f"{KARRAS}, eq. 8",
    tolerance=1e-9,
    identities="C5",
    only=("edm",),
)
def edm_formula(case: Case, result: LawResult) -> None:
    """w on the error of x0 is a unit weight on the error of F."""
    sd = case.component.sigma_data
    compare_weight(case, result, lambda level: 1.0 / sd**2 + snr(level))
