"""The three diffusion processes of the paper: VP, sub-VP and VE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Level, Scalar, Schedule, scalar

Positive = Annotated[float, Field(gt=0)]
CleanTime = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class _Linear(Schedule):
    """Base of VP and sub-VP: B(t) = int beta = beta_min t + (beta_max - beta_min) t^2 / 2, and its inverse."""

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    t_clean: CleanTime = 0.0
    law_options = ({"t_clean": 1e-3}, {"beta_min": 1.0, "beta_max": 9.0}, {"beta_min": 5.0, "beta_max": 5.0})

    def _integral(self, t: Scalar) -> Scalar:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _inverse(self, integral: Scalar) -> Scalar:
        root = scalar.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)
        return 2.0 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class VP(_Linear):
    """Variance preserving, DDPM in continuous time: alpha = exp(-B / 2), sigma = sqrt(1 - exp(-B)), t in (0, 1].

    B is the integral of beta, which is linear in t.

    `t_clean` > 0 keeps training and sampling away from t = 0, at which the score is unbounded (1e-5 and 1e-3 in the
    paper). Source: Song et al. 2021 (arXiv:2011.13456), eq. 32, 33.
    """

    def level(self, t: Scalar) -> Level:
        integral = self._integral(t)
        return Level(scalar.exp(-0.5 * integral), scalar.sqrt(-scalar.expm1(-integral)))

    def time(self, level: Level) -> Scalar:
        return self._inverse(scalar.log1p(scalar.divide(level.sigma, level.alpha) ** 2))


@dataclass(frozen=True)
class SubVP(_Linear):
    """Sub-VP, with at most the noise of VP: alpha = exp(-B / 2), sigma = 1 - exp(-B), a standard deviation.

    Source: Song et al. 2021 (arXiv:2011.13456), eq. 27, 29.
    """

    def level(self, t: Scalar) -> Level:
        integral = self._integral(t)
        return Level(scalar.exp(-0.5 * integral), -scalar.expm1(-integral))

    def time(self, level: Level) -> Scalar:
        """Invert sigma / alpha = 2 sinh(B / 2): B = 2 asinh(sigma / (2 alpha)), then t from B."""
        half = 0.5 * scalar.divide(level.sigma, level.alpha)
        return self._inverse(2.0 * scalar.log1p(half + half * half / (1.0 + scalar.hypot(1.0, half))))


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, t in [0, 1]; at t = 0 noise remains.

    sigma_max is about the largest distance of two examples: 50 for 32x32 pixels, 1348 for 1024x1024 in [0, 1].
    Raises ValueError unless sigma_min < sigma_max. Source: Song et al. 2021 (arXiv:2011.13456), eq. 30, 31.
    Differs: x_t given x_0 has variance sigma(t)^2 - sigma(0)^2 in the paper's SDE; here, as in its code, sigma is the
    whole noise in x, including that of t = 0.
    """

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    law_options = ({"sigma_max": 1348.0},)

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min:g}, which is not below sigma_max, {self.sigma_max:g}")

    def level(self, t: Scalar) -> Level:
        span = scalar.log(self.sigma_max / self.sigma_min)
        return Level(torch.ones_like(t) if isinstance(t, Tensor) else 1.0, self.sigma_min * scalar.exp(t * span))

    def time(self, level: Level) -> Scalar:
        span = scalar.log(self.sigma_max / self.sigma_min)
        return scalar.log(scalar.divide(level.sigma, level.alpha) / self.sigma_min) / span
