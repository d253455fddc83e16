"""Estimates. What is known about a noisy x is a clean part x0 and a noise part eps, with x = alpha x0 + sigma eps.

Every other prediction (v, score, velocity, mu) is linear in this pair, and every first-order step is one call of `at`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from . import scalar
from .errors import LevelError
from .level import Level, broadcast, combine
from .scalar import Scalar

NO_AUX: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Estimate:
    """x0, eps: (B, *S), both shaped like x. `aux` holds what else a network says: frac of a learned variance."""

    level: Level
    x0: Tensor
    eps: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=lambda: NO_AUX)

    @classmethod
    def from_x0(cls, x: Tensor, level: Level, x0: Tensor, aux: Mapping[str, Tensor] = NO_AUX) -> Estimate:
        """eps = (x - alpha x0) / sigma. Raises LevelError where sigma = 0 (nothing is left to know)."""
        if not isinstance(level.sigma, Tensor) and level.sigma == 0.0:
            raise LevelError(
                "eps from x0 is undefined at sigma = 0: clean data holds no noise",
                code="DK502",
                fix="end the grid before, or take x itself as the result",
            )
        at = level.like(x)
        return cls(level, x0, (x - at.alpha * x0) / at.sigma, aux)

    @property
    def score(self) -> Tensor:
        """-eps / sigma, the gradient of log p_t(x). Raises LevelError where sigma = 0."""
        if not isinstance(self.level.sigma, Tensor) and self.level.sigma == 0.0:
            raise LevelError(
                "the score is undefined at sigma = 0: clean data has no smooth density",
                code="DK503",
                fix="ask for the score at a level with sigma > 0",
            )
        return -self.eps / self.level.like(self.eps).sigma

    def at(
        self,
        s: Level,
        rho: Scalar = 0.0,
        noise: Tensor | Callable[[Tensor], Tensor] | None = None,
        std: Scalar | None = None,
    ) -> Tensor:
        """The state at level s: alpha_s x0 + sqrt(sigma_s^2 - rho^2) eps + (std or rho) z.

        rho = 0 is DDIM, rho = sigma_s sqrt(1 - exp(-2h)) the DDPM posterior, rho = sigma_s renoises. `std` replaces
        the standard deviation of the noise and leaves the mean. `noise` is z, shaped like x, or draws it.
        Raises LevelError where rho > sigma_s: no such step keeps the marginal law.
        Source: Song et al. 2021 (arXiv:2010.02502), eq. 12, with rho for their sigma_t.
        """
        target = s.like(self.x0)
        none = not isinstance(rho, Tensor) and rho == 0.0
        keep = target.sigma if none else target.kept(broadcast(rho, self.x0))
        x = combine(target.alpha, self.x0, keep, self.eps)
        spread = broadcast(rho if std is None else std, self.x0)
        if isinstance(spread, Tensor) or spread != 0.0:
            if noise is None:
                raise TypeError("a step with rho or std > 0 needs noise: pass z or a function that draws it")
            x = combine(1.0, x, spread, noise if isinstance(noise, Tensor) else noise(self.x0))
        return x

    def lerp(self, other: Estimate, weight: Scalar) -> Estimate:
        """(1 - weight) self + weight other, in x0 and eps; aux is that of `other`."""
        w = broadcast(weight, self.x0)
        return Estimate(
            other.level, self.x0 + w * (other.x0 - self.x0), self.eps + w * (other.eps - self.eps), other.aux
        )

    def with_x0(self, x0: Tensor) -> Estimate:
        """The estimate of the same x with another clean part: eps follows, as x = alpha x0 + sigma eps holds."""
        level = self.level.like(x0)
        if not isinstance(level.sigma, Tensor) and level.sigma == 0.0:
            return Estimate(self.level, x0, self.eps, self.aux)
        shift = scalar.divide(level.alpha, level.sigma)
        return Estimate(self.level, x0, self.eps + shift * (self.x0 - x0), self.aux)
