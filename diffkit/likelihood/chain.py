"""The model as a hierarchical VAE: a chain of latents z_1, ..., z_N between the data z_0 = x0 and noise.

The levels are those of any sampling grid. Layer i has the posterior q(z_{i-1} | z_i, x0), which the forward process
defines, and the model p(z_{i-1} | z_i), whose mean is that of the posterior at the estimate of x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .. import scalar, transition
from ..denoiser import Denoiser
from ..errors import UsageError
from ..estimate import Estimate
from ..level import Level
from ..scalar import Scalar
from ..schedule import Schedule

Variance = Literal["small", "large", "learned"]
ChainVariance = Literal["small", "large", "learned", "optimal"]
Noise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """The layers between the levels of a grid, and the variances of the model.

    levels     N + 1 levels as a grid returns them: the noisiest first, the last one with sigma = 0
    variance   std^2 of p(z_{i-1} | z_i): `small`, beta tilde; `large`, beta; `learned`, between both by
               aux["variance_fraction"]; `optimal`, beta tilde + Q^2 E|x0 - x0_hat|^2 / D, with the squared errors of
               `fit_errors`. Layer 1 has beta tilde = 0; `small` uses the value of layer 2 there.
    first      the variance `large` of layer 1: `own` (default), beta_1, or `second`, that of `small`, as in the code of
               DDPM
    errors     E|x0 - x0_hat|^2 / D of each layer for `optimal`, from `fit_errors`

    Layers count from 1, next to the data, to N. Raises UsageError (DK520) if the levels do not form a chain, or if
    `optimal` has no errors.
    Source: Ho et al. 2020 (arXiv:2006.11239), sec. 2 and 3; Bao et al. 2022 (arXiv:2201.06503), eq. 9, for `optimal`.
    """

    levels: Sequence[Level]
    variance: ChainVariance = "small"
    first: Literal["own", "second"] = "own"
    errors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        angles = [float(level.angle) for level in self.levels]
        if len(angles) < 2 or angles[-1] != 0.0 or any(s >= t for t, s in pairwise(angles)):
            raise UsageError(
                "a chain requires at least two levels, the noisiest first, the last one with sigma = 0",
                code="DK520",
                fix='make them by a grid, such as build("grid", "trailing").levels(schedule, 100)',
            )
        if self.variance == "optimal" and (self.errors is None or len(self.errors) != len(self)):
            raise UsageError(
                f"variance optimal requires the mean squared errors of {len(self)} layers",
                code="DK520",
                fix="use chain.with_errors(fit_errors(denoise, chain, batches))",
            )

    @classmethod
    def full(cls, schedule: Schedule, variance: Variance = "small") -> Chain:
        """Return the chain of all steps T, ..., 1 of a discrete schedule. Raises UsageError for a continuous one."""
        if schedule.steps is None:
            raise UsageError(
                f"{type(schedule).__name__} is continuous, so it has no full chain",
                code="DK520",
                fix='choose levels by a grid, such as Chain(build("grid", "trailing").levels(schedule, 100))',
            )
        levels = [schedule.level(float(t)) for t in range(schedule.steps, 0, -1)]
        return cls((*levels, schedule.clean), variance)

    def __len__(self) -> int:
        return len(self.levels) - 1

    def level(self, i: int) -> Level:
        """Return the level of z_i, i = 0..N."""
        return self.levels[len(self) - i]

    def with_errors(self, errors: Sequence[float] | Tensor) -> Chain:
        """Return the chain with variance `optimal` for these squared errors per dimension, one for each layer."""
        return replace(self, variance="optimal", errors=tuple(float(e) for e in errors))

    def prior(self, x0: Tensor) -> Tensor:
        """Compute KL(q(z_N | x0) || N(0, r^2 I)) / D in nats, r = hypot(alpha, sigma): (B, *S) -> (B,) float64."""
        return prior_kl(self.levels[0], x0)

    def posterior(self, i: int, z: Tensor, x0: Tensor) -> tuple[Tensor, float]:
        """Compute mean and standard deviation of q(z_{i-1} | z_i, x0).

        Args:
            i: The layer, 2..N.
            z: z_i: (B, *S).
            x0: Clean data: (B, *S).

        Returns:
            The mean (B, *S) and the standard deviation.
        """
        t, s = self.level(i), self.level(i - 1)
        p, q = transition.posterior_mean(t, s)
        return p * z + q * x0, float(transition.posterior(t, s))

    def reverse(self, i: int, estimate: Estimate) -> tuple[Tensor, Scalar]:
        """Compute mean and standard deviation of the model p(z_{i-1} | z_i).

        Args:
            i: The layer, 1..N; layer 1 gives the distribution of x0 itself.
            estimate: The estimate at z_i.

        Returns:
            The mean (B, *S), and the standard deviation, a float or (B, *S).
        """
        if i == 1:
            return estimate.x0, self.std(1, estimate)
        s = self.level(i - 1)
        return estimate.combine(s.alpha, s.remaining_std(self._small(i))), self.std(i, estimate)

    def std(self, i: int, estimate: Estimate) -> Scalar:
        """Return the standard deviation of p(z_{i-1} | z_i): a float, or (B, *S) if it is learned."""
        return self.small(i) * scalar.exp(self.log_excess(i, estimate))

    def small(self, i: int) -> float:
        """Return the standard deviation `small` of layer i; layer 1 has that of layer 2, or sigma_1 if N = 1."""
        if i > 1:
            return self._small(i)
        return self._small(2) if len(self) > 1 else float(self.level(1).sigma)

    def log_excess(self, i: int, estimate: Estimate) -> Scalar:
        """Return log(std / small) of layer i, computed without the difference of two nearly equal numbers."""
        small = self.small(i)
        if self.variance == "small":
            return 0.0
        if self.variance == "optimal":
            assert self.errors is not None
            if i == 1:
                return 0.5 * math.log(self.errors[0]) - math.log(small)
            _, q = transition.posterior_mean(self.level(i), self.level(i - 1))
            return 0.5 * math.log1p(float(q) ** 2 * self.errors[i - 1] / small**2)
        large = self._large(i)
        if self.variance == "large":
            return large
        if "variance_fraction" not in estimate.aux:
            raise UsageError(
                "variance learned requires variance_fraction of the estimate, which this model does not compute",
                code="DK520",
                fix="use small, large or optimal, or a parameterization with a learned variance",
            )
        return wide(estimate.aux["variance_fraction"]) * large

    def encode(self, x0: Tensor, noise: Noise) -> list[Tensor]:
        """Draw z_1, ..., z_N from q(z_i | z_{i-1}).

        Args:
            x0: Clean data: (B, *S).
            noise: Draws standard normal noise in the shape of its argument.

        Returns:
            N latents (B, *S), the cleanest first.
        """
        found, z = [], float(self.levels[-1].alpha) * x0
        for i in range(1, len(self) + 1):
            t, s = self.level(i), self.level(i - 1)
            z = transition.decay(t, s) * z + transition.spread(t, s) * noise(z)
            found.append(z)
        return found

    def decode(self, denoise: Denoiser, z: Tensor, noise: Noise, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Draw z_{N-1}, ..., z_1 from the model, and return the mean of x0 given z_1: ancestral sampling.

        Args:
            denoise: The model.
            z: z_N: (B, *S).
            noise: Draws standard normal noise in the shape of its argument.
            cond: Conditions, one row per example.

        Returns:
            The mean of p(x0 | z_1): (B, *S).
        """
        for i in range(len(self), 1, -1):
            mean, std = self.reverse(i, denoise(z, self.level(i), **(cond or {})))
            z = mean + (std.to(z.dtype) if isinstance(std, Tensor) else std) * noise(z)
        return denoise(z, self.level(1), **(cond or {})).x0

    def _small(self, i: int) -> float:
        return float(transition.posterior(self.level(i), self.level(i - 1)))

    def _large(self, i: int) -> float:
        """log(large / small)."""
        t, s = self.level(i), self.level(i - 1)
        if i == 1:
            return 0.0 if self.first == "second" else math.log(float(t.sigma) / self.small(1))
        # spread / posterior = sigma_t / sigma_s
        if float(t.scale) == float(s.scale):
            return -0.5 * math.log1p((float(s.sigma) ** 2 - float(t.sigma) ** 2) / float(t.sigma) ** 2)
        return math.log(float(t.sigma) / float(s.sigma))


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


def fit_errors(
    denoise: Denoiser, chain: Chain, batches: Iterable[tuple[Tensor, Noise, Mapping[str, Tensor]]]
) -> Tensor:
    """Compute E|x0 - x0_hat(z_i)|^2 / D of each layer, from which the variance `optimal` follows.

    Source: Bao et al. 2022 (arXiv:2201.06503), eq. 9, with the squared error in place of their score norm, to which it
    is equal for the exact denoiser; for any other denoiser it gives the variance that minimises the bound.

    Args:
        denoise: The model.
        chain: The layers; their variance is not used.
        batches: Clean data (B, *S), noise, and conditions, batch by batch.

    Returns:
        Mean squared errors, layer 1 first: (N,) float64 on the CPU.
    """
    total, count = torch.zeros(len(chain), dtype=torch.float64), 0
    with torch.no_grad():
        for x0, noise, cond in batches:
            count += len(x0)
            for i in range(len(chain), 0, -1):
                level = chain.level(i)
                estimate = denoise(level.add_noise(x0, noise(x0)), level, **cond)
                total[i - 1] += wide(x0 - estimate.x0).square().flatten(1).mean(1).sum().cpu()
    if count == 0:
        raise UsageError("fit_errors got no example", code="DK520", fix="pass at least one batch")
    return total / count


def prior_kl(level: Level, x0: Tensor) -> Tensor:
    """Compute KL(q(z | x0) || N(0, r^2 I)) / D in nats, r = hypot(alpha, sigma): (B, *S) -> (B,) float64.

    1/2 (a^2 mean(x0^2) - a^2 - log(1 - a^2)) with a = alpha / r. Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5.
    """
    a2 = scalar.divide(level.alpha, level.scale) ** 2
    return 0.5 * (a2 * wide(x0).flatten(1).square().mean(1) - a2 - scalar.log1p(-a2))


def wide(x: Tensor) -> Tensor:
    """Convert to float64, or to float32 on a device without it (mps)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
