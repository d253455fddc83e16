"""The DDIM sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler, transition


@dataclass(frozen=True)
class DDIM(Sampler[None]):
    """DDIM, with noise of strength eta: x_s = alpha_s x0 + sqrt(sigma_s^2 - rho^2) eps + rho z, rho = eta sigma_s
    sqrt(1 - exp(-2h)).

    eta = 0 is deterministic, of order 1 for the probability-flow ODE; eta = 1 is the ancestral sampler with the small
    variance. eta scales the standard deviation (identity F9 of docs/theory/identities.md) and may exceed 1 as long as
    rho <= sigma_s; otherwise the step raises LevelError. Source: Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
    """

    eta: Annotated[float, Field(ge=0)] = 0.0
    order = 1
    law_options = ({"eta": 0.5}, {"eta": 1.0})
    presets = (
        ("diffusers", {"grid": {"name": "leading", "offset": 1, "end": "first"}, "start_scale": "unit"}),
        ("diffusers", {"grid": {"name": "trailing", "end": "first"}, "start_scale": "unit"}),
    )

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        rho = self.eta * float(transition.posterior(t, s)) if self.eta else 0.0
        return denoise(x, t).step_to(s, rho, noise), None
