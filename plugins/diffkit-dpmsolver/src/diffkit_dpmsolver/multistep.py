"""DPM-Solver++ multistep: exponential Adams-Bashforth on x0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Level, Sampler
from diffkit.sampler import Noise

from .coefficients import REMEMBERED, Known, advanced, moments, shares, stretched

Eta = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class DPMpp2M(Sampler[Known]):
    """x0 linear in half_logsnr through the last two outputs, one evaluation a step; the first step is DDIM.

    variant `midpoint`: x0 + (x0 - x0_prev) h / (2 h_prev), of the paper; `heun`: the line integrated exactly, with
    phi_2. eta as in DDIM's eq. 16: 0 is the flow, 1 the SDE (identities F4b, F9). The step to clean data takes x0.
    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 2; `heun` and the SDE: app. A and eq. 18 there.
    Differs: k-diffusion's eta is another number, rho = sigma_s sqrt(1 - exp(-2 eta h)); the two agree at 0 and 1.
    """

    variant: Literal["midpoint", "heun"] = "midpoint"
    eta: Eta = 0.0
    order = 2
    law_options = ({"variant": "heun"}, {"eta": 0.5}, {"variant": "heun", "eta": 1.0})

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0.0

    def integrals(self, length: float) -> list[float]:
        """Of 1 and tau over a step."""
        first, second = moments(length, 2)
        return [first, 0.5 * first if self.variant == "midpoint" else second]

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Known | None, noise: Noise
    ) -> tuple[Tensor, Known]:
        return _step(self, denoise, x, t, s, state or (), noise)


@dataclass(frozen=True)
class DPMpp3M(Sampler[Known]):
    """x0 quadratic in half_logsnr through the last three outputs, integrated exactly; starts with orders 1 and 2.

    Third order once the history is (identity F1): started cold, the first two steps limit the whole to second.
    `published` halves the quadratic term, as the paper and its copies do, which is of second order.
    eta as in DDIM's eq. 16. The step to clean data takes x0. Source: Lu et al. 2022 (arXiv:2211.01095), app. A, B;
    Differs: the coefficient of the second difference is 2 (1/2 - phi_2 / h), where the factor 2 is missing there.
    """

    published: bool = False
    eta: Eta = 0.0
    law_options = ({"published": True}, {"eta": 0.5}, {"eta": 1.0})

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.published else 3

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0.0

    def integrals(self, length: float) -> list[float]:
        """Of 1, tau and tau^2 over a step."""
        first, second, third = moments(length, 3)
        return [first, second, 0.5 * third if self.published else third]

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Known | None, noise: Noise
    ) -> tuple[Tensor, Known]:
        return _step(self, denoise, x, t, s, state or (), noise)


def _step(
    sampler: DPMpp2M | DPMpp3M, denoise: Denoiser, x: Tensor, t: Level, s: Level, before: Known, noise: Noise
) -> tuple[Tensor, Known]:
    """From t to s with the polynomial through this output and those before; the new history."""
    known = ((float(t.half_logsnr), denoise(x, t).x0), *before)
    rho, keep, factors = _coefficients(sampler, t, s, tuple(clock for clock, _ in known))
    x = advanced(x, keep, [x0 for _, x0 in known], factors)
    return x.add_(noise(x), alpha=rho) if rho else x, known[: len(factors)]


@lru_cache(maxsize=REMEMBERED)
def _coefficients(
    sampler: DPMpp2M | DPMpp3M, t: Level, s: Level, clocks: tuple[float, ...]
) -> tuple[float, float, list[float]]:
    """(rho, factor of x, factors of the outputs)."""
    rho, length = stretched(t, s, sampler.eta)
    keep = float(s.kept(rho)) / float(t.sigma)
    return rho, keep, shares(t, s, keep, clocks, sampler.integrals(length))
