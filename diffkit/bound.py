"""The terms of the variational bound on -log p(x0), in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import scalar, transition
from .denoiser import Denoiser
from .estimate import Estimate
from .level import Level, broadcast
from .noise import RandomStreams
from .scalar import Scalar
from .schedule import Schedule

Variance = Literal["small", "large", "learned"]
LOG_2PI = math.log(2.0 * math.pi)
LOG_2 = math.log(2.0)


def term(x0: Tensor, t: Tensor, estimate: Estimate, schedule: Schedule, variance: Variance, bins: int | None) -> Tensor:
    """Compute the term L_{t-1} of the bound in nats per dimension.

    KL(N(P x_t + Q x0, beta tilde) || N(P x_t + Q x0_hat, std^2)) = log(std / posterior) + (posterior^2 + Q^2 |x0 -
    x0_hat|^2) / (2 std^2) - 1/2 for t > 1; at t = 1, -log of the decoder. Source: Ho et al. 2020 (arXiv:2006.11239),
    eq. 8, 13.

    Args:
        x0: Clean data: (B, *S).
        t: Steps: (B,), integers in 1..T.
        estimate: The estimate of the model at x_t.
        schedule: A discrete schedule.
        variance: Variance of p(x_{t-1} | x_t): `small`, `large` or `learned`.
        bins: Number of values of discrete data, for the discretised decoder; None for the density.

    Returns:
        The term per example: (B,).
    """
    first = torch.le(t, 1)
    at, before = schedule.level(t), schedule.level((t - 1).clamp(min=1))
    before = Level(torch.where(first, 1.0, before.alpha), torch.where(first, 0.0, before.sigma))
    std = deviation(estimate, at, before, first, schedule, variance)
    small = broadcast(torch.where(first, 1.0, transition.posterior(at, before)), x0)
    _, q = transition.posterior_mean(at, before)
    error = broadcast(q, x0) * (x0 - estimate.x0)
    kl = torch.log(std / small) + 0.5 * ((small**2 + error**2) / std**2 - 1.0)
    at_first = first.reshape(-1, *(1,) * (x0.ndim - 1))
    # An untrained network may be far off at the noisy end. There the decoder gets x0 in place of the estimate, since 0
    # times the gradient of infinity would be nan.
    mean = torch.where(at_first, estimate.x0, x0)
    decoder = density(error, std) if bins is None else discretised(x0, mean, std, bins)
    return torch.where(at_first, decoder, kl).flatten(1).mean(1)


def deviation(
    estimate: Estimate, at: Level, before: Level, first: Tensor, schedule: Schedule, variance: Variance
) -> Tensor:
    """Compute the standard deviation of p(x_{t-1} | x_t). At t = 1 `small` uses the value of t = 2.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.

    Args:
        estimate: The estimate of the model at x_t.
        at: Levels at t: (B,).
        before: Levels at t - 1: (B,).
        first: Whether t = 1: (B,) bool.
        schedule: A discrete schedule.
        variance: `small`, `large` or `learned`.

    Returns:
        The standard deviation, which broadcasts to x0: (B, *S).
    """
    x = estimate.x0
    one, two = schedule.level(1.0), schedule.level(min(2.0, schedule.t_noise))
    floor = transition.posterior(two, one) if one != two else one.sigma
    small = broadcast(torch.where(first, floor, transition.posterior(at, before)), x)
    large = broadcast(transition.spread(at, before), x)
    if variance == "small":
        return torch.as_tensor(small)
    if variance == "large":
        return torch.as_tensor(large)
    return interpolated(small, large, estimate.aux["variance_fraction"])


def interpolated(small: Scalar, large: Scalar, variance_fraction: Tensor) -> Tensor:
    """Compute the standard deviation of a learned variance: log std = f log large + (1 - f) log small.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.

    Args:
        small: The standard deviation at f = 0.
        large: The standard deviation at f = 1.
        variance_fraction: f in [0, 1]: (B, *S).

    Returns:
        The standard deviation: (B, *S).
    """
    return torch.exp(variance_fraction * scalar.log(large) + (1.0 - variance_fraction) * scalar.log(small))


def density(error: Tensor, std: Tensor) -> Tensor:
    """Compute -log N(error; 0, std^2), element by element."""
    return 0.5 * (error / std) ** 2 + torch.log(std) + 0.5 * LOG_2PI


def discretised(x0: Tensor, mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Compute -log of the probability of the bin of x0 under N(mean, std^2); the first and last bin are open.

    Computed as a difference of log cdf, so that no probability underflows.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 13. Differs: the exact cdf, no tanh, no clamp.

    Args:
        x0: Data with values 2k / (bins - 1) - 1: (B, *S).
        mean: Means: (B, *S).
        std: Standard deviations, which broadcast to x0.
        bins: Number of values.

    Returns:
        One value per element: (B, *S).
    """
    half = 1.0 / (bins - 1)
    above, below = (x0 + half - mean) / std, (x0 - half - mean) / std
    # Mirror bins to the right of the mean, so that both tails are small numbers.
    mirror = above + below > 0
    upper, lower = torch.where(mirror, -below, above), torch.where(mirror, -above, below)
    first, last = x0 < -1.0 + half, x0 > 1.0 - half
    inf = torch.full_like(x0, torch.inf)
    lower = torch.where(torch.where(mirror, last, first), -inf, lower)
    upper = torch.where(torch.where(mirror, first, last), inf, upper)
    log_upper: Tensor = torch.special.log_ndtr(upper)
    log_lower: Tensor = torch.special.log_ndtr(lower)
    gap = torch.where(torch.isinf(log_lower), -inf, log_lower - log_upper)
    return -(log_upper + torch.log(-torch.expm1(gap)))


@dataclass(frozen=True, slots=True)
class Bound:
    """The upper bound prior + sum(terms) of -log p(x0) in nats per dimension. prior: (B,), terms: (T, B), row t - 1."""

    prior: Tensor
    terms: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of all terms: (B,)."""
        return self.prior + self.terms.sum(0)

    @property
    def bits(self) -> Tensor:
        """The whole bound in bits per dimension: (B,); meaningful if the decoder has bins."""
        return self.total / LOG_2


def exact(
    denoise: Denoiser,
    schedule: Schedule,
    x0: Tensor,
    noise: RandomStreams,
    *,
    variance: Variance = "small",
    bins: int | None = None,
    cond: Mapping[str, Tensor] | None = None,
) -> Bound:
    """Compute the whole bound of x0 (prior, KL terms and decoder) with one evaluation per step 1..T.

    L_T = 1/2 mean(alpha_T^2 x0^2 + sigma_T^2 - 1 - log sigma_T^2). Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5.

    Args:
        denoise: The denoiser.
        schedule: A discrete schedule.
        x0: Clean data: (B, *S).
        noise: Random numbers of these examples.
        variance: Variance of p(x_{t-1} | x_t); default `small`.
        bins: Number of values of discrete data; None (default) for the density.
        cond: Conditions, one row per example.

    Returns:
        The bound per example.
    """
    assert schedule.steps is not None
    rows = []
    with torch.no_grad():
        for step in range(1, schedule.steps + 1):
            t = torch.full((len(x0),), step, device=x0.device)
            level = schedule.level(float(step))
            x = level.add_noise(x0, noise.normal(f"bound-{step}", x0))
            estimate = denoise(x, level, **(cond or {}))
            rows.append(term(x0, t, estimate, schedule, variance, bins))
    end = schedule.noise
    prior = 0.5 * ((end.alpha * x0) ** 2 + end.sigma**2 - 1.0 - 2.0 * scalar.log(end.sigma)).flatten(1).mean(1)
    return Bound(prior, torch.stack(rows))
