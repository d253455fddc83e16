"""The terms of the variational bound, exactly, in nats."""

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
    """L_{t-1} in nats per dimension: x0: (B, *S), t: (B,) whole -> (B,).

    KL(N(P x_t + Q x0, beta tilde) || N(P x_t + Q x0_hat, std^2)) = log(std / posterior) + (posterior^2 + Q^2 |x0 -
    x0_hat|^2) / (2 std^2) - 1/2 for t > 1; at t = 1, -log of the decoder. Source: Ho et al. 2020 (arXiv:2006.11239),
    eq. 8, 13.
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
    # An early network may be wildly wrong at the noisy end: what the decoder does not judge must not make its gradient
    # nan, which 0 times the gradient of an infinity is.
    mean = torch.where(at_first, estimate.x0, x0)
    decoder = density(error, std) if bins is None else discretised(x0, mean, std, bins)
    return torch.where(at_first, decoder, kl).flatten(1).mean(1)


def deviation(
    estimate: Estimate, at: Level, before: Level, first: Tensor, schedule: Schedule, variance: Variance
) -> Tensor:
    """Standard deviation of p(x_{t-1} | x_t), ready to multiply x0. At t = 1 `small` is that of t = 2.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.
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
    """The standard deviation of a learned variance: log std = f log large + (1 - f) log small.

    f = variance_fraction: (B, *S) in [0, 1]. Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.
    """
    return torch.exp(variance_fraction * scalar.log(large) + (1.0 - variance_fraction) * scalar.log(small))


def density(error: Tensor, std: Tensor) -> Tensor:
    """-log N(error; 0, std^2), element by element."""
    return 0.5 * (error / std) ** 2 + torch.log(std) + 0.5 * LOG_2PI


def discretised(x0: Tensor, mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """-log of the probability that N(mean, std^2) gives the bin of x0, the first and last bin being open.

    x0 takes the values 2k / (bins - 1) - 1. Computed as a difference of log cdf, so that no probability underflows.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 13. Differs: the exact cdf, no tanh, no clamp.
    """
    half = 1.0 / (bins - 1)
    above, below = (x0 + half - mean) / std, (x0 - half - mean) / std
    # The bin is mirrored where it lies right of the mean, so that both tails are small numbers.
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
    """-log p(x0) is at most the sum of `prior` and `terms`, in nats per dimension. terms: (T, B), row t - 1."""

    prior: Tensor
    terms: Tensor

    @property
    def total(self) -> Tensor:
        """(B,) the whole bound."""
        return self.prior + self.terms.sum(0)

    @property
    def bits(self) -> Tensor:
        """(B,) the whole bound in bits per dimension; meaningful where the decoder has bins."""
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
    """The whole bound of x0: (B, *S): prior, KL terms and decoder, one evaluation for each of the T steps.

    L_T = 1/2 mean(alpha_T^2 x0^2 + sigma_T^2 - 1 - log sigma_T^2). Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5.
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
