"""Estimates: a denoiser splits a noisy x into a clean part x0 and a noise part eps, with x = alpha x0 + sigma eps.

Every other prediction (v, score, velocity, mu) is linear in this pair, and every first-order step is one `step_to`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from . import scalar
from .errors import LevelError
from .level import Level, broadcast, weighted_sum
from .scalar import Scalar


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Estimate:
    """The clean part and the noise part of x at `level`; x0, eps: (B, *S).

    `aux` holds further outputs of the network, such as `variance_fraction` of a learned variance: (B, *S) each.
    """

    level: Level
    x0: Tensor
    eps: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_x0(cls, x: Tensor, level: Level, x0: Tensor, aux: Mapping[str, Tensor] | None = None) -> Estimate:
        """Make the estimate of x with clean part x0: eps = (x - alpha x0) / sigma.

        Args:
            x: The noisy data: (B, *S).
            level: The level of x.
            x0: The clean part: (B, *S).
            aux: Further outputs of the network; none by default.

        Returns:
            The estimate at `level`.

        Raises:
            LevelError: sigma is the float 0 (DK502).
        """
        if not isinstance(level.sigma, Tensor) and level.sigma == 0.0:
            raise LevelError(
                "eps cannot be computed from x0 at sigma = 0: clean data holds no noise",
                code="DK502",
                fix="end the grid before this level, or use x itself as the result",
            )
        at = level.like(x)
        return cls(level, x0, (x - at.alpha * x0) / at.sigma, aux or {})

    @property
    def score(self) -> Tensor:
        """The score -eps / sigma, the gradient of log p_t(x). Raises LevelError at sigma = 0."""
        if not isinstance(self.level.sigma, Tensor) and self.level.sigma == 0.0:
            raise LevelError(
                "the score is undefined at sigma = 0: clean data has no smooth density",
                code="DK503",
                fix="compute the score at a level with sigma > 0",
            )
        return self.combine(0.0, -1.0 / self.level.sigma)

    def combine(self, a: Scalar, b: Scalar) -> Tensor:
        """Compute a x0 + b eps: (B, *S). a, b: floats, (B,), or any shape that broadcasts to x0."""
        return weighted_sum(broadcast(a, self.x0), self.x0, broadcast(b, self.x0), self.eps)

    def step_to(
        self,
        s: Level,
        rho: Scalar = 0.0,
        noise: Tensor | Callable[[Tensor], Tensor] | None = None,
        std: Scalar | None = None,
    ) -> Tensor:
        """Compute the state at level s: alpha_s x0 + sqrt(sigma_s^2 - rho^2) eps + (std or rho) z.

        rho = 0 is DDIM, rho = sigma_s sqrt(1 - exp(-2h)) the DDPM posterior, rho = sigma_s draws all noise again.
        Source: Song et al. 2021 (arXiv:2010.02502), eq. 12, with rho for their sigma_t.

        Args:
            s: The level to step to.
            rho: Standard deviation of the noise to add; default 0.
            noise: z: (B, *S), or a function that returns z for a tensor of this shape. Required if noise is added.
            std: Standard deviation of z in place of rho; the mean stays that of rho. Default: rho.

        Returns:
            x at level s: (B, *S).

        Raises:
            LevelError: rho > sigma_s, so that no step keeps the marginal distribution (DK504).
            TypeError: Noise is to be added but `noise` is missing.
        """
        target, rho = s.like(self.x0), broadcast(rho, self.x0)
        x = self.combine(target.alpha, target.remaining_std(rho) if isinstance(rho, Tensor) or rho else target.sigma)
        std = rho if std is None else broadcast(std, self.x0)
        if not isinstance(std, Tensor) and std == 0.0:
            return x
        if noise is None:
            raise TypeError("a step with rho or std > 0 requires noise: pass z or a function that draws z")
        return weighted_sum(1.0, x, std, noise if isinstance(noise, Tensor) else noise(self.x0))

    def interpolate(self, other: Estimate, weight: Scalar) -> Estimate:
        """Compute (1 - weight) self + weight other in x0 and eps, with the level and aux of `other`."""
        w = broadcast(weight, self.x0)
        x0, eps = (weighted_sum(1.0 - w, a, w, b) for a, b in ((self.x0, other.x0), (self.eps, other.eps)))
        return replace(other, x0=x0, eps=eps)

    def at_level(self, level: Level) -> Estimate:
        """Return the same x0 and eps at another level of the same signal-to-noise ratio."""
        return replace(self, level=level)

    def with_aux(self, **aux: Tensor) -> Estimate:
        """Return the same estimate with further entries in `aux`."""
        return replace(self, aux={**self.aux, **aux})

    def with_x0(self, x0: Tensor) -> Estimate:
        """Return the estimate of the same x with clean part x0: eps follows from x = alpha x0 + sigma eps."""
        level = self.level.like(x0)
        if not isinstance(level.sigma, Tensor) and level.sigma == 0.0:
            return replace(self, x0=x0)
        shift = scalar.divide(level.alpha, level.sigma)
        return replace(self, x0=x0, eps=weighted_sum(1.0, self.eps, shift, self.x0 - x0))

    def __repr__(self) -> str:
        names = "".join(f", {name}" for name in self.aux)
        return f"Estimate({self.level}, x0 and eps {tuple(self.x0.shape)}{names})"
