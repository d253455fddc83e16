"""Estimates. What is known about a noisy x is a clean part x0 and a noise part eps, with x = alpha x0 + sigma eps.

Every other prediction (v, score, velocity, mu) is linear in this pair, and every first-order step is one call of `at`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from . import scalar
from .errors import LevelError
from .level import Level, broadcast, weighted_sum
from .scalar import Scalar

Rows = tuple[float, float, float, float]
"""(p, q, r, s) of x0 = p x + q y and eps = r x + s y."""
NO_AUX: Mapping[str, Tensor] = MappingProxyType({})


class Estimate:
    """x0, eps: (B, *S), both shaped like x. `aux` holds what else a network says: the variance_fraction of a
    learned variance.

    What a network said (`decoded`) stays as it came: x0 and eps are computed when they are first asked for, and a
    step reads x and the output once instead of decoding first. So nothing of it may be changed in place: neither x nor
    the output, neither x0 nor eps. Where gradients are recorded, both are computed at once, with theirs.
    """

    __slots__ = ("_eps", "_said", "_x0", "aux", "level")

    def __init__(self, level: Level, x0: Tensor, eps: Tensor, aux: Mapping[str, Tensor] = NO_AUX) -> None:
        self.level, self.aux = level, aux
        self._x0: Tensor | None = x0
        self._eps: Tensor | None = eps
        self._said: tuple[Tensor, Tensor, Rows] | None = None

    @classmethod
    def decoded(cls, level: Level, x: Tensor, y: Tensor, rows: Rows) -> Estimate:
        """x0 = p x + q y and eps = r x + s y; x, y: (B, *S), rows = (p, q, r, s)."""
        p, q, r, s = rows
        if torch.is_grad_enabled():
            return cls(level, weighted_sum(p, x, q, y), weighted_sum(r, x, s, y))
        made = cls.__new__(cls)
        made.level, made.aux = level, NO_AUX
        made._x0 = made._eps = None
        made._said = (x.detach() if x.requires_grad else x, y, rows)
        return made

    @property
    def x0(self) -> Tensor:
        """The clean part."""
        if self._x0 is None:
            self._x0 = self.combine(1.0, 0.0)
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The noise part, of unit variance."""
        if self._eps is None:
            self._eps = self.combine(0.0, 1.0)
        return self._eps

    def combine(self, a: Scalar, b: Scalar) -> Tensor:
        """a x0 + b eps, what a parameterization with the row (a, b) would say: (B, *S). a, b: floats, (B,) or wider."""
        if self._said is None or not (isinstance(a, float) and isinstance(b, float)):
            return weighted_sum(broadcast(a, self._like), self.x0, broadcast(b, self._like), self.eps)
        x, y, (p, q, r, s) = self._said
        return weighted_sum(a * p + b * r, x, a * q + b * s, y)

    def at_level(self, level: Level) -> Estimate:
        """The same x0 and eps, said of another level of the same signal-to-noise ratio."""
        return self._like_this(level, self.aux)

    def with_aux(self, **aux: Tensor) -> Estimate:
        """The same estimate, with more in `aux`."""
        return self._like_this(self.level, {**self.aux, **aux})

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
        return self.combine(0.0, -1.0 / self.level.sigma)

    def step_to(
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
        like = self._like
        target = s.like(like)
        none = not isinstance(rho, Tensor) and rho == 0.0
        x = self.combine(target.alpha, target.sigma if none else target.remaining_std(broadcast(rho, like)))
        spread = broadcast(rho if std is None else std, like)
        if isinstance(spread, Tensor) or spread != 0.0:
            if noise is None:
                raise TypeError("a step with rho or std > 0 needs noise: pass z or a function that draws it")
            x = weighted_sum(1.0, x, spread, noise if isinstance(noise, Tensor) else noise(like))
        return x

    def interpolate(self, other: Estimate, weight: Scalar) -> Estimate:
        """(1 - weight) self + weight other, in x0 and eps; aux and level are those of `other`.

        Two outputs of one parameterization at the same x are mixed as they are, before anything is decoded.
        """
        w = broadcast(weight, self._like)
        mine, its = self._said, other._said
        if mine is not None and its is not None and mine[0] is its[0] and mine[2] == its[2]:
            mixed = Estimate.decoded(other.level, its[0], _between(mine[1], its[1], w), its[2])
            return mixed._like_this(other.level, other.aux)
        return Estimate(other.level, _between(self.x0, other.x0, w), _between(self.eps, other.eps, w), other.aux)

    def with_x0(self, x0: Tensor) -> Estimate:
        """The estimate of the same x with another clean part: eps follows, as x = alpha x0 + sigma eps holds."""
        level = self.level.like(x0)
        if not isinstance(level.sigma, Tensor) and level.sigma == 0.0:
            return Estimate(self.level, x0, self.eps, self.aux)
        shift = scalar.divide(level.alpha, level.sigma)
        return Estimate(self.level, x0, weighted_sum(1.0, self.eps, shift, self.x0 - x0), self.aux)

    def __repr__(self) -> str:
        told = "".join(f", {name}" for name in self.aux)
        return f"Estimate({self.level}, x0 and eps {tuple(self._like.shape)}{told})"

    def _like_this(self, level: Level, aux: Mapping[str, Tensor]) -> Estimate:
        made = Estimate.__new__(Estimate)
        made.level, made.aux = level, aux
        made._x0, made._eps, made._said = self._x0, self._eps, self._said
        return made

    @property
    def _like(self) -> Tensor:
        """A tensor of the shape, type and device of x0, computed or not."""
        return self.x0 if self._said is None else self._said[0]


def _between(a: Tensor, b: Tensor, weight: Scalar) -> Tensor:
    """(1 - weight) a + weight b."""
    return a + weight * (b - a) if isinstance(weight, Tensor) else weighted_sum(1.0 - weight, a, weight, b)
