"""Noise levels. A level is the pair (alpha, sigma) of x = alpha x0 + sigma eps with eps ~ N(0, I)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import scalar
from .errors import LevelError
from .scalar import Scalar


@dataclass(frozen=True, slots=True)
class Level:
    """The amounts of signal and noise in x = alpha x0 + sigma eps.

    `alpha` and `sigma` are Python floats during sampling and tensors during training: (B,) with one entry per example,
    or any shape that broadcasts to x (for example one entry per pixel or frame).
    """

    alpha: Scalar
    sigma: Scalar

    @property
    def snr(self) -> Scalar:
        """Signal-to-noise ratio alpha^2 / sigma^2; inf at sigma = 0."""
        return scalar.divide(self.alpha, self.sigma) ** 2

    @property
    def half_logsnr(self) -> Scalar:
        """log(alpha / sigma), the lambda of DPM-Solver; inf at sigma = 0, -inf at alpha = 0."""
        return scalar.log(self.alpha) - scalar.log(self.sigma)

    @property
    def ratio(self) -> Scalar:
        """sigma / alpha, the noise in units of the signal (the sigma of EDM); inf at alpha = 0."""
        return scalar.divide(self.sigma, self.alpha)

    @property
    def angle(self) -> Scalar:
        """atan2(sigma, alpha) in [0, pi/2]: 0 for clean data, pi/2 for pure noise; independent of the scale of x."""
        return scalar.atan2(self.sigma, self.alpha)

    @property
    def scale(self) -> Scalar:
        """hypot(alpha, sigma), which is 1 on variance-preserving schedules."""
        return scalar.hypot(self.alpha, self.sigma)

    @property
    def is_clean(self) -> bool:
        """Whether sigma is 0. Raises TypeError for levels of tensors, since reading them would wait for the device."""
        return self._host(self.sigma) == 0.0

    @property
    def is_noise(self) -> bool:
        """Whether alpha is 0. Raises TypeError for levels of tensors, since reading them would wait for the device."""
        return self._host(self.alpha) == 0.0

    @staticmethod
    def _host(value: Scalar) -> float:
        if isinstance(value, Tensor):
            raise TypeError("is_clean and is_noise are defined for levels of Python floats, not of tensors")
        return value

    def like(self, x: Tensor) -> Level:
        """Return this level with alpha and sigma in a shape that multiplies x: (B, *S).

        Floats stay floats. Tensors move to the device of x and take its dtype (at least float32); (B,) becomes
        (B, 1, ..., 1), and any other shape is kept.
        """
        if isinstance(self.alpha, float) and isinstance(self.sigma, float):
            return self
        return Level(broadcast(self.alpha, x), broadcast(self.sigma, x))

    def add_noise(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Compute x = alpha x0 + sigma eps; x0, eps: (B, *S) -> (B, *S)."""
        level = self.like(x0)
        return level.alpha * x0 + level.sigma * eps

    def remaining_std(self, rho: Scalar) -> Scalar:
        """Compute sqrt(sigma^2 - rho^2), the factor of eps in a step to this level that adds noise of deviation rho.

        Raises LevelError for floats if rho > sigma, since no such step keeps the marginal distribution. Tensors give 0
        instead.
        """
        if not isinstance(rho, Tensor) and not isinstance(self.sigma, Tensor) and rho > self.sigma * (1 + 1e-12):
            raise LevelError(
                f"a step adds noise of standard deviation rho = {rho:.6g} to a level with sigma = {self.sigma:.6g}",
                code="DK504",
                fix="use a sampler that adds less noise (rho <= sigma_s is required), or take more steps",
            )
        return scalar.sqrt(scalar.maximum(self.sigma**2 - rho**2, 0.0))

    def rescaled(self, scale: Scalar) -> Level:
        """Return the level of the same signal-to-noise ratio with hypot(alpha, sigma) = scale."""
        factor = scalar.divide(scale, self.scale)
        return Level(self.alpha * factor, self.sigma * factor)


def broadcast(value: Scalar, x: Tensor) -> Scalar:
    """Reshape a coefficient so that it broadcasts to x: (B, *S).

    Floats are returned unchanged. Tensors take the device and dtype of x (at least float32), and (B,) becomes
    (B, 1, ..., 1).
    """
    if not isinstance(value, Tensor):
        return value
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    value = value.to(device=x.device, dtype=dtype)
    if value.ndim == 1 and x.ndim > 1:
        value = value.reshape(-1, *(1,) * (x.ndim - 1))
    return value


def weighted_sum(c: Scalar, x: Tensor, d: Scalar, y: Tensor) -> Tensor:
    """Compute c x + d y, and skip the operations that float coefficients of 0 and 1 make unnecessary.

    Args:
        c: Factor of x: a float, or a tensor that broadcasts to x.
        x: Any shape.
        d: Factor of y: a float, or a tensor that broadcasts to y.
        y: The shape of x.

    Returns:
        A tensor of the shape of x, which is x or y itself if the other factor is 0 and its own is 1.
    """
    if not isinstance(d, Tensor):
        if d == 0.0:
            return x if not isinstance(c, Tensor) and c == 1.0 else c * x
        if not isinstance(c, Tensor) and c == 0.0:
            return y if d == 1.0 else d * y
        return torch.add(x if not isinstance(c, Tensor) and c == 1.0 else c * x, y, alpha=d)
    return d * y if not isinstance(c, Tensor) and c == 0.0 else c * x + d * y
