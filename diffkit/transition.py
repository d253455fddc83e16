"""Transitions between two levels, t noisier than s.

All formulas use the difference of half log-SNR, h = half_logsnr(s) - half_logsnr(t) > 0, so that no variance is
computed as the small difference of two large numbers.
"""

from __future__ import annotations

from . import scalar
from .level import Level
from .scalar import Scalar


def step(t: Level, s: Level) -> Scalar:
    """Return h = log(alpha_s / sigma_s) - log(alpha_t / sigma_t), the length of the step; inf if s is clean."""
    return s.half_logsnr - t.half_logsnr


def decay(t: Level, s: Level) -> Scalar:
    """Return alpha_{t|s} = alpha_t / alpha_s, the factor of x_s in x_t."""
    return scalar.divide(t.alpha, s.alpha)


def spread(t: Level, s: Level) -> Scalar:
    """Return sigma_{t|s}, the standard deviation of q(x_t | x_s): sigma_{t|s}^2 = sigma_t^2 (1 - exp(-2h)).

    On a full discrete variance-preserving grid this is sqrt(beta_t). Source: Kingma et al. 2021 (arXiv:2107.00630),
    app. A: sigma_t^2 - alpha_{t|s}^2 sigma_s^2.
    """
    return t.sigma * scalar.sqrt(-scalar.expm1(-2.0 * step(t, s)))


def posterior(t: Level, s: Level) -> Scalar:
    """Return the standard deviation of q(x_s | x_t, x0), the root of beta tilde: sigma_s sqrt(1 - exp(-2h)).

    It is 0 if s is clean. Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7, between any two levels.
    """
    return s.sigma * scalar.sqrt(-scalar.expm1(-2.0 * step(t, s)))


def posterior_mean(t: Level, s: Level) -> tuple[Scalar, Scalar]:
    """Return (P, Q) with E[x_s | x_t, x0] = P x_t + Q x0.

    P = alpha_{t|s} sigma_s^2 / sigma_t^2, Q = alpha_s (1 - exp(-2h)).
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7, between any two levels.
    """
    shrink = scalar.divide(s.sigma, t.sigma)
    return decay(t, s) * shrink * shrink, s.alpha * -scalar.expm1(-2.0 * step(t, s))
