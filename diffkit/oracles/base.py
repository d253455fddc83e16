"""Oracles: denoisers in closed form, for data whose law is known.

An oracle knows the law of x = alpha x0 + sigma eps at every level: besides x0* = E[x0 | x] it answers the score, the
posterior covariance, densities, entropies, losses that no network can beat, and the exact probability flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffkit.estimate import Estimate
from diffkit.level import Level
from diffkit.parameterization import Parameterization
from diffkit.scalar import Scalar

CLEAN = Level(1.0, 0.0)
"""The level of the data itself."""


class Oracle(ABC):
    """A `Denoiser` that is exact; levels of floats or tensors, results in the type and on the device of x.

    Means over x (`entropy`, `mmse`, `minimum_loss`) are sums over the dimensions of an example, in nats and squares,
    and take levels of floats.
    """

    @abstractmethod
    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        """x0* = E[x0 | x] and eps* = E[eps | x]; x: (B, *S)."""

    def score(self, x: Tensor, level: Level, **cond: Tensor) -> Tensor:
        """The gradient of log p_t(x): (B, *S) -> (B, *S). Raises LevelError at sigma = 0."""
        return self(x, level, **cond).score

    @abstractmethod
    def covariance(self, x: Tensor, level: Level) -> Tensor:
        """Cov[x0 | x]: (B, *S) -> (B, D, D), D the number of dimensions of an example."""

    @abstractmethod
    def log_density(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        """log p_t(x): (B, *S) -> (B,), in nats."""

    @abstractmethod
    def entropy(self, level: Level = CLEAN) -> float:
        """-E[log p_t(x)] in nats; -inf where the law has no density."""

    @abstractmethod
    def uncertainty(self, level: Level) -> float:
        """E|x0 - x0*|^2 / sigma^2, finite down to sigma = 0."""

    def mmse(self, level: Level) -> float:
        """E|x0 - x0*|^2, the least squared error of any denoiser."""
        return self.uncertainty(level) * float(level.sigma) ** 2

    def minimum_loss(self, parameterization: Parameterization, level: Level) -> float:
        """E|target - y*|^2 = (det / sigma)^2 E|x0 - x0*|^2, the least loss of a network. Identities C3, D3."""
        a, b = parameterization.coefficients(level)
        det = float(level.alpha) * float(b) - float(level.sigma) * float(a)
        return det**2 * self.uncertainty(level)

    @abstractmethod
    def flow(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """Where the probability-flow ODE carries x from level t to level s, exactly: (B, *S) -> (B, *S)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Examples of the data: (count, *S) float64."""


def column(value: Scalar, x: Tensor) -> Scalar:
    """A coefficient ready to multiply x.flatten(1): float, (B, 1), or (B, D) where it differs within an example."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(device=x.device, dtype=working(x))
    if value.ndim <= 1:
        return value.reshape(-1, 1)
    return value.expand(x.shape).flatten(1)


def working(x: Tensor) -> torch.dtype:
    """The type that x is computed in: its own, float32 where that has half precision."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
