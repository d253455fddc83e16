"""Laws of parameterizations with canonical names: their targets, by the table of identities C."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffkit.parameterization import Parameterization

from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject
from .parameterization import levels

Target = Callable[[Tensor, Tensor, float, float], Tensor]


def _table(subject: Subject, worst: Worst, target: Target) -> None:
    if subject.options:
        raise Inapplicable("held at its defaults")
    p: Parameterization = subject.component
    x0, eps = subject.normal(3, 2, stream="x0"), subject.normal(3, 2, stream="eps")
    for level in levels(subject):
        want = target(x0, eps, float(level.alpha), float(level.sigma))
        worst.compare(p.target(x0, eps, level), want, f"target at {level}", 1e-3)


def _known(name: str, statement: str, source: str, target: Target) -> None:
    def check(subject: Subject, worst: Worst) -> None:
        _table(subject, worst, target)

    check.__doc__ = "The row of the table of predictions, at every level and scale."
    law(
        "parameterization",
        statement=statement,
        source=source,
        tolerance=1e-10,
        identities="C",
        only=(name,),
        name=f"{name}-target",
    )(check)


_known("eps", "the target is eps", "Ho et al. 2020 (arXiv:2006.11239), eq. 11", lambda x0, eps, a, s: eps)
_known("x0", "the target is x0", "Ho et al. 2020 (arXiv:2006.11239), sec. 3.2", lambda x0, eps, a, s: x0)
_known(
    "v",
    "the target is (alpha eps - sigma x0) / hypot(alpha, sigma)",
    "Salimans & Ho 2022 (arXiv:2202.00512), app. D",
    lambda x0, eps, a, s: (a * eps - s * x0) / (a * a + s * s) ** 0.5,
)
_known("flow", "the target is eps - x0", "Liu et al. 2023 (arXiv:2209.03003), eq. 1", lambda x0, eps, a, s: eps - x0)
_known("score", "the target is -eps / sigma", "Song et al. 2021 (arXiv:2011.13456)", lambda x0, eps, a, s: -eps / s)


def _edm(x0: Tensor, eps: Tensor, a: float, s: float) -> Tensor:
    sd, sg = 0.5, s / a
    y = x0 + sg * eps
    c_skip, c_out = sd**2 / (sg**2 + sd**2), sg * sd / (sg**2 + sd**2) ** 0.5
    target: Tensor = (x0 - c_skip * y) / c_out
    return target


_known(
    "edm",
    "the target is F = (x0 - c_skip y) / c_out, y = x / alpha, sigma_data = 0.5",
    "Karras et al. 2022 (arXiv:2206.00364), eq. 7, table 1",
    _edm,
)


@law(
    "parameterization",
    statement="the target is the mean of q(x_{t-1} | x_t, x0)",
    source="Ho et al. 2020 (arXiv:2006.11239), eq. 7",
    tolerance=1e-9,
    identities="B1",
    only=("mu",),
)
def mu_target(subject: Subject, worst: Worst) -> None:
    """c0 x0 + cx x_t, c0 = sqrt(abar_{t-1}) beta_t / (1 - abar_t), cx = sqrt(a_t) (1 - abar_{t-1}) / (1 - abar_t)."""
    p = subject.component
    schedule = p.schedule
    betas = schedule.betas
    abar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - betas, 0)])
    x0, eps = subject.normal(3, 2, stream="x0"), subject.normal(3, 2, stream="eps")
    for t in (1, 2, 3, len(betas) // 2, len(betas)):
        beta, now, before = float(betas[t - 1]), float(abar[t]), float(abar[t - 1])
        level = schedule.level(float(t))
        x = level.add_noise(x0, eps)
        want = before**0.5 * beta / (1 - now) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * x
        worst.compare(p.target(x0, eps, level), want, f"target at t = {t}")


@law(
    "parameterization",
    statement="c_in x has unit variance for data of deviation sigma_data; the network is told log(sigma / alpha) / 4",
    source="Karras et al. 2022 (arXiv:2206.00364), table 1",
    tolerance=1e-9,
    identities="C6",
    only=("edm",),
)
def edm_input(subject: Subject, worst: Worst) -> None:
    """Var(x) = alpha^2 sd^2 + sigma^2."""
    p = subject.component
    for level in levels(subject):
        a, s = float(level.alpha), float(level.sigma)
        variance = (a * p.sigma_data) ** 2 + s**2
        worst.compare(float(p.c_in(level)) ** 2 * variance, 1.0, f"Var(c_in x) at {level}")
        worst.compare(float(p.c_noise(level)), 0.25 * math.log(s / a), f"c_noise at {level}")
