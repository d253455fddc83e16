"""Oracles: denoisers in closed form, for data with a known distribution.

Besides x0* = E[x0 | x] an oracle computes the score, the posterior covariance, densities, entropies, the minimum loss
of any network, and the exact probability flow, for x = alpha x0 + sigma eps at every level.
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
    """Base of exact denoisers. Levels may hold floats or tensors; results have the dtype and device of x.

    Expectations over x (`entropy`, `mmse`, `minimum_loss`) are sums over the dimensions of an example, and require
    levels of floats.
    """

    @abstractmethod
    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        """Compute x0* = E[x0 | x] and eps* = E[eps | x].

        Args:
            x: Noisy data at `level`: (B, *S).
            level: The level of x.
            **cond: Conditions, one row per example.

        Returns:
            The exact estimate.
        """

    def score(self, x: Tensor, level: Level, **cond: Tensor) -> Tensor:
        """Compute the gradient of log p_t(x).

        Args:
            x: Noisy data at `level`: (B, *S).
            level: The level of x.
            **cond: Conditions, one row per example.

        Returns:
            The score: (B, *S).

        Raises:
            LevelError: sigma = 0 (DK503).
        """
        return self(x, level, **cond).score

    @abstractmethod
    def covariance(self, x: Tensor, level: Level) -> Tensor:
        """Compute Cov[x0 | x]: (B, *S) -> (B, D, D), D = number of dimensions of an example."""

    @abstractmethod
    def log_density(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        """Compute log p_t(x): (B, *S) -> (B,), in nats."""

    @abstractmethod
    def entropy(self, level: Level = CLEAN) -> float:
        """Compute -E[log p_t(x)] in nats; -inf for a distribution without a density."""

    @abstractmethod
    def uncertainty(self, level: Level) -> float:
        """Compute E|x0 - x0*|^2 / sigma^2, which is finite at sigma = 0."""

    def mmse(self, level: Level) -> float:
        """Compute E|x0 - x0*|^2, the minimum squared error of any denoiser."""
        return self.uncertainty(level) * float(level.sigma) ** 2

    def minimum_loss(self, parameterization: Parameterization, level: Level) -> float:
        """Compute E|target - y*|^2 = (det / sigma)^2 E|x0 - x0*|^2, the minimum loss. Identities C3, D3 of
        docs/theory/identities.md.
        """
        a, b = parameterization.coefficients(level)
        det = float(level.alpha) * float(b) - float(level.sigma) * float(a)
        return det**2 * self.uncertainty(level)

    @abstractmethod
    def flow(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """Solve the probability-flow ODE exactly.

        Args:
            x: The state at level t: (B, *S).
            t: The level to start from.
            s: The level to end at.

        Returns:
            The state at level s: (B, *S).
        """

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw examples of the data: (count, *S) float64."""


def column(value: Scalar, x: Tensor) -> Scalar:
    """Reshape a coefficient to multiply x.flatten(1): a float, (B, 1), or (B, D) if it differs within an example."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(device=x.device, dtype=working(x))
    if value.ndim <= 1:
        return value.reshape(-1, 1)
    return value.expand(x.shape).flatten(1)


def working(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: that of x, or float32 if x has half precision."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
