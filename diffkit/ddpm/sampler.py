"""Ancestral sampling: one draw from the posterior per step of the reverse chain."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler, transition
from diffkit.likelihood import Variance, interpolated


@dataclass(frozen=True)
class Ancestral(Sampler[None]):
    """Ancestral sampling: x_s = posterior mean of (x_t, x0_hat) + std z, on the full grid or any part of it.

    variance `small`: std^2 = beta tilde = sigma_s^2 (1 - exp(-2h)), exact if the data is one point;
    `large`: std^2 = beta = sigma_t^2 (1 - exp(-2h)), exact if the data is N(0, I);
    `learned`: log std^2 = f log beta + (1 - f) log beta tilde, f = aux["variance_fraction"] in [0, 1] from the network.
    The last step, to clean data, adds no noise. Source: Ho et al. 2020 (arXiv:2006.11239), Algorithm 2 and sec. 3.2;
    Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15 and 19.
    """

    variance: Variance = "small"
    order = 1
    stochastic = True
    presets = (
        ("diffusers", {"grid": {"name": "leading", "offset": 1}, "start_scale": "unit"}),
        ("diffusers", {"grid": {"name": "linspace", "rounding": "none"}}),
        ("diffusers", {"grid": {"name": "trailing"}}),
    )
    law_options = ({"variance": "large"}, {"variance": "learned"})

    @property
    def law_exemptions(self) -> dict[str, str]:
        """Laws that do not apply, with reasons."""
        if self.variance == "small":
            return {}
        scale = {"rescaling": "beta is the variance of q(x_t | x_s), in the scale of x_t, whatever the scale of x_s"}
        if self.variance == "learned":
            return scale
        return {**scale, "point-mass-law": "beta is the variance of the posterior for N(0, I), too large for one point"}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("variance_fraction",) if self.variance == "learned" else ()

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        estimate = denoise(x, t)
        if s.is_clean:
            return estimate.step_to(s), None
        small = transition.posterior(t, s)
        if self.variance == "small":
            return estimate.step_to(s, small, noise), None
        large = transition.spread(t, s)
        if self.variance == "large":
            return estimate.step_to(s, small, noise, large), None
        return estimate.step_to(s, small, noise, interpolated(small, large, estimate.aux["variance_fraction"])), None
