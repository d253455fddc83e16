"""The exact denoiser of Gaussian data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffkit.estimate import Estimate
from diffkit.level import Level

from .base import CLEAN, Oracle, column, working

LOG_2PI = math.log(2.0 * math.pi)


class GaussianOracle(Oracle):
    """The exact denoiser of x0 ~ N(m, S): x0* = m + alpha S (alpha^2 S + sigma^2 I)^-1 (x - alpha m).

    mean         one number for data of any shape, or a tensor (*S)
    covariance   one number, a diagonal (*S) or (D,), or a matrix (D, D) with D the number of elements of the mean

    Raises ValueError if they do not fit, or if the covariance is not symmetric and positive semi-definite.
    Identities D1 to D4 of docs/theory/identities.md.
    """

    def __init__(self, mean: float | Tensor, covariance: float | Tensor) -> None:
        m = torch.as_tensor(mean, dtype=torch.float64)
        s = torch.as_tensor(covariance, dtype=torch.float64)
        self._shape: tuple[int, ...] | None = tuple(m.shape) if m.ndim else None
        d = m.numel()
        matrix = s.ndim == 2 and s.shape[0] == s.shape[1] and s.shape != m.shape and (not m.ndim or s.shape[0] == d)
        if not m.ndim and s.ndim:
            d = len(s) if matrix else s.numel()
            self._shape = (d,) if matrix else tuple(s.shape)
        if not matrix and s.ndim and s.numel() != d:
            raise ValueError(f"a covariance of shape {tuple(s.shape)} does not fit a mean of shape {tuple(m.shape)}")
        self._axes: Tensor | None = None
        if matrix:
            if not torch.allclose(s, s.T, rtol=1e-12, atol=1e-12 * float(s.abs().max())):
                raise ValueError("the covariance is not symmetric")
            s, self._axes = torch.linalg.eigh(s)
            s = torch.where(s.abs() <= 1e-15 * s.abs().max(), torch.zeros_like(s), s)
        if bool((s < 0).any()):
            raise ValueError("the covariance has a negative eigenvalue")
        self._mean, self._variances = m.reshape(-1), s.reshape(-1)

    @property
    def dimensions(self) -> int:
        """The number D of dimensions of an example; 1 if the data may have any shape."""
        return max(self._mean.numel(), self._variances.numel())

    @property
    def mean(self) -> Tensor:
        """The mean m of the data: (D,) float64."""
        return self._mean.expand(self.dimensions)

    @property
    def variances(self) -> Tensor:
        """The eigenvalues of the covariance: (D,) float64."""
        return self._variances.expand(self.dimensions)

    @property
    def matrix(self) -> Tensor:
        """The covariance: (D, D) float64."""
        if self._axes is None:
            return torch.diag(self.variances)
        return (self._axes * self._variances) @ self._axes.T

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        m, s, axes = self._at(x)
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        y = self._turn(x.to(working(x)).flatten(1) - alpha * m, axes)
        v = alpha**2 * s + sigma**2
        ratio = torch.where(v > 0, y / torch.where(v > 0, v, 1.0), 0.0)
        x0 = m + self._back(alpha * s * ratio, axes)
        eps = self._back(sigma * ratio, axes)
        return Estimate(level, x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def covariance(self, x: Tensor, level: Level) -> Tensor:
        _, s, axes = self._at(x)
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        v = alpha**2 * s + sigma**2
        each = torch.where(v > 0, s * sigma**2 / torch.where(v > 0, v, 1.0), 0.0)
        diagonal = torch.diag_embed(each.expand(len(x), x[0].numel()))
        return diagonal if axes is None else axes @ diagonal @ axes.T

    def log_density(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        m, s, axes = self._at(x)
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        y = self._turn(x.to(working(x)).flatten(1) - alpha * m, axes)
        v = (alpha**2 * s + sigma**2).expand_as(y)
        return -0.5 * (y**2 / v + torch.log(v) + LOG_2PI).sum(1)

    def entropy(self, level: Level = CLEAN) -> float:
        v = self._marginal(level)
        return float(0.5 * (torch.log(v) + LOG_2PI + 1.0).sum())

    def uncertainty(self, level: Level) -> float:
        v = self._marginal(level)
        return float(torch.where(self.variances > 0, self.variances / v, 0.0).sum())

    def flow(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """Compute alpha_s m + S_s^1/2 S_t^-1/2 (x - alpha_t m). Identity D4 of docs/theory/identities.md."""
        m, variances, axes = self._at(x)
        y = self._turn(x.to(working(x)).flatten(1) - column(t.alpha, x) * m, axes)
        before, after = self._spread(t, x, variances), self._spread(s, x, variances)
        z = self._back(y * torch.where(before > 0, after / torch.where(before > 0, before, 1.0), 0.0), axes)
        return (column(s.alpha, x) * m + z).reshape(x.shape).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn(count, self.dimensions, generator=generator, dtype=torch.float64)
        x = self.mean + self._back(z * self.variances.sqrt(), self._axes)
        return x.reshape(count, *(self._shape if self._shape is not None else (1,)))

    def _marginal(self, level: Level) -> Tensor:
        return float(level.alpha) ** 2 * self.variances + float(level.sigma) ** 2

    @staticmethod
    def _spread(level: Level, x: Tensor, s: Tensor) -> Tensor:
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        return torch.sqrt(alpha**2 * s + sigma**2)

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.dimensions > 1 and x[0].numel() != self.dimensions:
            raise ValueError(
                f"x of shape {tuple(x.shape)} does not have the {self.dimensions} dimensions of this Gaussian"
            )
        at = (x.device, working(x))
        return self._mean.to(*at), self._variances.to(*at), None if self._axes is None else self._axes.to(*at)

    @staticmethod
    def _turn(y: Tensor, axes: Tensor | None) -> Tensor:
        return y if axes is None else y @ axes

    @staticmethod
    def _back(y: Tensor, axes: Tensor | None) -> Tensor:
        return y if axes is None else y @ axes.T


def PointMassOracle(point: float | Tensor) -> GaussianOracle:  # noqa: N802 - used like a class
    """Return the oracle of data that is one point: x0* = point for every x, so that samplers are exact.

    Identity F2 of docs/theory/identities.md.
    """
    return GaussianOracle(point, 0.0)
