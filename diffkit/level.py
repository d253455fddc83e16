"""Noise levels. A level is the pair (alpha, sigma) of x = alpha x0 + sigma eps, eps ~ N(0, I)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import scalar
from .errors import LevelError
from .scalar import Scalar


@dataclass(frozen=True, slots=True)
class Level:
    """How much signal and noise there is: x = alpha x0 + sigma eps.

    `alpha` and `sigma` are Python floats while sampling, and tensors while training: (B,), one for each example, or
    any shape that broadcasts to x (one for each pixel or frame).
    """

    alpha: Scalar
    sigma: Scalar

    def __hash__(self) -> int:
        """That of sigma alone, by which levels of one grid differ: half the time, and samplers look levels up often."""
        return hash(self.sigma)

    @property
    def snr(self) -> Scalar:
        """Signal-to-noise ratio alpha^2 / sigma^2; inf where clean."""
        return scalar.divide(self.alpha, self.sigma) ** 2

    @property
    def half_logsnr(self) -> Scalar:
        """log(alpha / sigma); inf where clean, -inf where noise."""
        return scalar.log(self.alpha) - scalar.log(self.sigma)

    @property
    def ratio(self) -> Scalar:
        """sigma / alpha, the noise in units of the signal; inf where noise."""
        return scalar.divide(self.sigma, self.alpha)

    @property
    def angle(self) -> Scalar:
        """atan2(sigma, alpha), in [0, pi/2]: 0 where clean, pi/2 where noise; unchanged when x is rescaled."""
        return scalar.atan2(self.sigma, self.alpha)

    @property
    def scale(self) -> Scalar:
        """hypot(alpha, sigma): 1 on variance-preserving curves."""
        return scalar.hypot(self.alpha, self.sigma)

    @property
    def is_clean(self) -> bool:
        """sigma == 0. Raises TypeError on tensors, whose value would have to come from the device."""
        return self._host(self.sigma) == 0.0

    @property
    def is_noise(self) -> bool:
        """alpha == 0. Raises TypeError on tensors, whose value would have to come from the device."""
        return self._host(self.alpha) == 0.0

    @staticmethod
    def _host(value: Scalar) -> float:
        if isinstance(value, Tensor):
            raise TypeError("is_clean and is_noise are for levels of Python floats, not of tensors")
        return value

    def like(self, x: Tensor) -> Level:
        """The same level, ready to multiply x: (B, *S).

        Floats stay floats. Tensors move to the device of x, take its type (float32 at least), and (B,) becomes
        (B, 1, ..., 1); any other shape already broadcasts and is kept.
        """
        if isinstance(self.alpha, float) and isinstance(self.sigma, float):
            return self
        return Level(broadcast(self.alpha, x), broadcast(self.sigma, x))

    def add_noise(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x = alpha x0 + sigma eps; x0, eps: (B, *S) -> (B, *S)."""
        level = self.like(x0)
        return level.alpha * x0 + level.sigma * eps

    def remaining_std(self, rho: Scalar) -> Scalar:
        """sqrt(sigma^2 - rho^2): what is left for eps where a step to this level adds noise of deviation rho.

        Raises LevelError where rho > sigma: no such step keeps the marginal law. Not for tensors, which give 0.
        """
        if not isinstance(rho, Tensor) and not isinstance(self.sigma, Tensor) and rho > self.sigma * (1 + 1e-12):
            raise LevelError(
                f"a step adds noise of standard deviation rho = {rho:.6g} to a level with sigma = {self.sigma:.6g}",
                code="DK504",
                fix="let the sampler add less noise (rho <= sigma_s is needed), or take more steps",
            )
        return scalar.sqrt(scalar.maximum(self.sigma**2 - rho**2, 0.0))

    def rescaled(self, scale: Scalar) -> Level:
        """The level of the same signal-to-noise ratio with hypot(alpha, sigma) = scale."""
        factor = scalar.divide(scale, self.scale)
        return Level(self.alpha * factor, self.sigma * factor)


def broadcast(value: Scalar, x: Tensor) -> Scalar:
    """A coefficient ready to multiply x: floats as they are, (B,) as (B, 1, ..., 1), in the type of x or float32."""
    if not isinstance(value, Tensor):
        return value
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    value = value.to(device=x.device, dtype=dtype)
    if value.ndim == 1 and x.ndim > 1:
        value = value.reshape(-1, *(1,) * (x.ndim - 1))
    return value


def weighted_sum(c: Scalar, x: Tensor, d: Scalar, y: Tensor) -> Tensor:
    """c x + d y, without the operations that floats of 0 and 1 make needless."""
    if not isinstance(d, Tensor):
        if d == 0.0:
            return x if not isinstance(c, Tensor) and c == 1.0 else c * x
        if not isinstance(c, Tensor) and c == 0.0:
            return y if d == 1.0 else d * y
        return torch.add(x if not isinstance(c, Tensor) and c == 1.0 else c * x, y, alpha=d)
    return d * y if not isinstance(c, Tensor) and c == 0.0 else c * x + d * y
