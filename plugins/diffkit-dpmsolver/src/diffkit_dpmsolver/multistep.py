"""DPM-Solver++ multistep: exponential Adams-Bashforth on x0."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from diffkit import Level

from .coefficients import moments, noisy_step, output_factors
from .linear import OF_DIFFUSERS, Multistep, Step

Eta = Annotated[float, Field(ge=0)]


class _Exponential(Multistep):
    """The exponential integral of a polynomial through the last outputs, with noise chosen by `eta`."""

    eta: float

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    @abstractmethod
    def integrals(self, length: float) -> list[float]:
        """Compute the integrals of 1, tau, tau^2, ... over a step, tau in [0, 1], one for each output."""

    def factors(self, t: Level, s: Level, levels: tuple[Level, ...]) -> Step:
        rho, length = noisy_step(t, s, self.eta)
        keep = float(s.remaining_std(rho)) / float(t.sigma)
        return Step(keep, output_factors(t, s, keep, levels, self.integrals(length)), rho)


@dataclass(frozen=True)
class DPMpp2M(_Exponential):
    """DPM-Solver++(2M): x0 linear in half_logsnr through the last two outputs, one evaluation a step; the first step is
    DDIM.

    variant `midpoint`: x0 + (x0 - x0_prev) h / (2 h_prev), as in the paper; `heun`: the line integrated exactly, with
    phi_2. eta as in DDIM's eq. 16: 0 is the flow, 1 the SDE (identities F4b, F9 of docs/theory/identities.md). The step
    to clean data returns x0.
    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 2; `heun` and the SDE: app. A and eq. 18 there.
    Differs: k-diffusion's eta is another number, rho = sigma_s sqrt(1 - exp(-2 eta h)); the two agree at 0 and 1.
    """

    variant: Literal["midpoint", "heun"] = "midpoint"
    eta: Eta = 0.0
    order = 2
    remembers = 2
    law_options = ({"variant": "heun"}, {"eta": 0.5}, {"variant": "heun", "eta": 1.0})
    presets = OF_DIFFUSERS

    def integrals(self, length: float) -> list[float]:
        """Compute the integrals of 1 and tau over a step, tau in [0, 1]."""
        first, second = moments(length, 2)
        return [first, 0.5 * first if self.variant == "midpoint" else second]


@dataclass(frozen=True)
class DPMpp3M(_Exponential):
    """DPM-Solver++(3M): x0 quadratic in half_logsnr through the last three outputs; starts with orders 1 and 2.

    Third order with an exact history (identity F1 of docs/theory/identities.md); from a cold start the first two steps
    limit the order to 2. `published` halves the quadratic term, as the paper and its copies do, which gives second
    order. eta as in DDIM's eq. 16. The step to clean data returns x0. Source: Lu et al. 2022 (arXiv:2211.01095),
    app. A, B;
    Differs: the coefficient of the second difference is 2 (1/2 - phi_2 / h); the factor 2 is missing in the paper.
    """

    published: bool = False
    eta: Eta = 0.0
    remembers = 3
    law_options = ({"published": True}, {"eta": 0.5}, {"eta": 1.0})

    @property
    def order(self) -> int:
        return 2 if self.published else 3

    def integrals(self, length: float) -> list[float]:
        """Compute the integrals of 1, tau and tau^2 over a step, tau in [0, 1]."""
        first, second, third = moments(length, 3)
        return [first, second, 0.5 * third if self.published else third]
