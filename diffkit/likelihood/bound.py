"""The variational bound on -log p(x0), in nats per dimension."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import scalar, transition
from ..denoiser import Denoiser
from ..estimate import Estimate
from ..level import Level, broadcast
from ..scalar import Scalar
from ..schedule import Schedule
from .chain import Chain, Noise, Variance, wide
from .decoder import Decoder, Density, Discretised

LOG_2 = math.log(2.0)


class Total(ABC):
    """Base of bounds on -log p(x0), in nats per dimension. Implement `total`."""

    @property
    @abstractmethod
    def total(self) -> Tensor:
        """The bound on -log p(x0) / D: (B,)."""

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per dimension: (B,); for continuous data that of the density."""
        return self.total / LOG_2

    @property
    def standard_error(self) -> float:
        """Standard error of the mean of `bits_per_dim` over the examples; nan for one example."""
        return float(self.bits_per_dim.std() / math.sqrt(len(self.total)))


@dataclass(frozen=True)
class Bound(Total):
    """The terms of the bound of B examples on a chain of N layers, in nats per dimension, float64.

    prior           (B,) KL(q(z_N | x0) || p(z_N))
    layers          (N, B), row i - 1 is that of layer i: row 0 is -log p(x0 | z_1), the others are
                    KL(q(z_{i-1} | z_i, x0) || p(z_{i-1} | z_i))
    squared_error   (N, B), |x0 - x0_hat(z_i)|^2 / D of layer i
    """

    prior: Tensor
    layers: Tensor
    squared_error: Tensor

    @property
    def decoder(self) -> Tensor:
        """-log p(x0 | z_1): (B,)."""
        return self.layers[0]

    @property
    def kl(self) -> Tensor:
        """The sum of the KL terms of layers 2 to N: (B,)."""
        return self.layers[1:].sum(0)

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x0) / D: (B,)."""
        return self.prior + self.layers.sum(0)

    def rate_distortion(self) -> tuple[Tensor, Tensor]:
        """Compute the rate in bits per dimension, and the mean squared error, of progressive transmission.

        After z_N, ..., z_i are received, the rate is the prior term and the KL terms of layers N..i + 1, and the
        reconstruction is x0_hat(z_i). Source: Ho et al. 2020 (arXiv:2006.11239), sec. 4.3.

        Returns:
            Means over the examples for i = N, ..., 1, and last the lossless code with error 0: (N + 1,) each.
        """
        steps = torch.cat([self.prior.mean()[None], self.layers.mean(1).flip(0)])
        error = torch.cat([self.squared_error.mean(1).flip(0), torch.zeros_like(steps[:1])])
        return steps.cumsum(0) / LOG_2, error

    @classmethod
    def cat(cls, parts: Sequence[Bound]) -> Bound:
        """Join the bounds of several batches on the same chain."""
        return cls(
            torch.cat([one.prior for one in parts]),
            torch.cat([one.layers for one in parts], 1),
            torch.cat([one.squared_error for one in parts], 1),
        )


def variational_bound(
    denoise: Denoiser,
    chain: Chain,
    x0: Tensor,
    noise: Noise,
    decoder: Decoder,
    cond: Mapping[str, Tensor] | None = None,
) -> Bound:
    """Compute every term of the bound of x0, with one evaluation of the model for each layer.

    Each z_i is drawn from q(z_i | x0). Only one batch of latents is held at a time.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5.

    Args:
        denoise: The model; a guidance that clips is part of the mean of the reverse process.
        chain: The layers and their variances.
        x0: Clean data: (B, *S).
        noise: Draws standard normal noise in the shape of its argument, once for each layer, N to 1.
        decoder: The distribution of x0 given z_1.
        cond: Conditions, one row per example; default none.

    Returns:
        The terms of each example.

    Raises:
        UsageError: The data does not have the values of the decoder (DK521).
    """
    decoder.check(x0)
    layers, errors = [], []
    with torch.no_grad():
        for i in range(len(chain), 0, -1):
            level = chain.level(i)
            z = level.add_noise(x0, noise(x0))
            estimate = denoise(z, level, **(cond or {}))
            error = wide(x0 - estimate.x0)
            if i > 1:
                _, q = transition.posterior_mean(level, chain.level(i - 1))
                value = gaussian_kl(float(q) * error, chain.small(i), chain.log_excess(i, estimate))
            else:
                mean, std = wide(estimate.x0), chain.std(1, estimate)
                if decoder.of_latent:
                    mean, std = wide(z) / float(level.alpha), float(level.ratio)
                value = -decoder.log_prob(wide(x0), mean, std)
            layers.append(value.flatten(1).mean(1))
            errors.append(error.square().flatten(1).mean(1))
    return Bound(chain.prior(x0), torch.stack(layers[::-1]), torch.stack(errors[::-1]))


def gaussian_kl(error: Tensor, small: Scalar, log_excess: Scalar) -> Tensor:
    """Compute KL(N(m, small^2) || N(m + error, std^2)), element by element, with log_excess = log(std / small).

    error^2 / (2 std^2) + (r - 1 - log r) / 2, r = (small / std)^2: no difference of nearly equal numbers, so that terms
    far below the precision of their parts are right.

    Args:
        error: Difference of the means: (B, *S).
        small: Standard deviation of the first distribution.
        log_excess: log(std / small); a float, or a tensor that broadcasts to `error`.

    Returns:
        The divergence: (B, *S).
    """
    excess = torch.as_tensor(log_excess, dtype=error.dtype, device=error.device)
    return 0.5 * (error / small) ** 2 * torch.exp(-2.0 * excess) + 0.5 * _exp_remainder(-2.0 * excess)


def _exp_remainder(y: Tensor) -> Tensor:
    """Compute exp(y) - 1 - y, by its series for small y."""
    series = 0.5 * y**2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7)))))
    return torch.where(y.abs() < 0.02, series, torch.expm1(y) - y)


def term(x0: Tensor, t: Tensor, estimate: Estimate, schedule: Schedule, variance: Variance, bins: int | None) -> Tensor:
    """Compute the term of random steps of the full chain, for training.

    KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t > 1; at t = 1, -log of the decoder. Source: Ho et al. 2020
    (arXiv:2006.11239), eq. 8, 13.

    Args:
        x0: Clean data: (B, *S).
        t: Steps: (B,), integers in 1..T.
        estimate: The estimate of the model at x_t.
        schedule: A discrete schedule.
        variance: Variance of p(x_{t-1} | x_t): `small`, `large` or `learned`. At t = 1 `small` uses the value of t = 2.
        bins: Number of values of discrete data, for the discretised decoder; None for the density.

    Returns:
        The term per example, in nats per dimension: (B,).
    """
    first = torch.le(t, 1)
    at, before = schedule.level(t), schedule.level((t - 1).clamp(min=1))
    before = Level(torch.where(first, 1.0, before.alpha), torch.where(first, 0.0, before.sigma))
    one, two = schedule.level(1.0), schedule.level(min(2.0, schedule.t_noise))
    floor = transition.posterior(two, one) if one != two else one.sigma
    small = torch.where(first, floor, transition.posterior(at, before))
    excess: Scalar = 0.0
    if variance != "small":
        excess = broadcast(scalar.log(transition.spread(at, before)) - torch.log(small), x0)
        excess = excess if variance == "large" else estimate.aux["variance_fraction"] * excess
    _, q = transition.posterior_mean(at, before)
    small = torch.as_tensor(broadcast(small, x0))
    kl = gaussian_kl(broadcast(q, x0) * (x0 - estimate.x0), small, excess)
    at_first = first.reshape(-1, *(1,) * (x0.ndim - 1))
    # An untrained network may be far off at the noisy end. There the decoder gets x0 in place of the estimate, since 0
    # times the gradient of infinity would be nan.
    mean = torch.where(at_first, estimate.x0, x0)
    decoder = Density() if bins is None else Discretised(bins)
    std = small * scalar.exp(excess)
    return torch.where(at_first, -decoder.log_prob(x0, mean, std), kl).flatten(1).mean(1)
