"""Parameterizations: what the output of a network means.

An output is a row (a, b) of the plane of estimates, y = a x0 + b eps. With x = alpha x0 + sigma eps this is a 2x2
system of determinant det = alpha b - sigma a, and target, decoding and loss weight all follow from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from . import scalar
from .errors import LevelError
from .estimate import Estimate, Rows
from .level import Level, broadcast, weighted_sum
from .scalar import Scalar
from .value import is_value


class Parameterization(ABC):
    """Implement `coefficients`. The rest is derived once, here.

    `provides` names entries of `Estimate.aux` that `decode` adds; `full_precision` refuses network outputs in half
    precision where decoding would amplify their error.
    """

    provides: tuple[str, ...] = ()
    full_precision: bool = False

    @abstractmethod
    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        """(a, b) of y = a x0 + b eps, finite at every level."""

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What the network should say: a x0 + b eps; x0, eps: (B, C, *S)."""
        a, b = (broadcast(c, x0) for c in self.coefficients(level))
        return weighted_sum(a, x0, b, eps)

    def decode(self, y: Tensor, x: Tensor, level: Level) -> Estimate:
        """What the output y means: x0 = (b x - sigma y) / det, eps = (alpha y - a x) / det.

        y, x: (B, C, *S). Raises LevelError where det = 0: there x and y say the same thing.
        """
        if isinstance(level.sigma, float) and isinstance(level.alpha, float) and is_value(self):
            return Estimate.decoded(level, x, y, _host_rows(self, level))
        p, q, r, s = (broadcast(v, x) for v in self.inverse(level))
        return Estimate(level, weighted_sum(p, x, q, y), weighted_sum(r, x, s, y))

    def inverse(self, level: Level) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """(p, q, r, s) with x0 = p x + q y and eps = r x + s y. Raises LevelError where det = 0."""
        a, b = self.coefficients(level)
        det = level.alpha * b - level.sigma * a
        self._refuse_singular(det, level)
        p, q, r, s = (scalar.divide(v, det) for v in (b, -level.sigma, -a, level.alpha))
        return p, q, r, s

    def weight(self, level: Level) -> Scalar:
        """(det / sigma)^2: a unit loss on y is this weight on |x0 - x0_hat|^2."""
        a, b = self.coefficients(level)
        return scalar.divide(level.alpha * b - level.sigma * a, level.sigma) ** 2

    def out_channels(self, channels: int) -> int:
        """Output channels of a network for data of so many channels."""
        return channels

    def c_in(self, level: Level) -> Scalar:
        """The factor of x at the input of the network."""
        return 1.0

    def c_noise(self, level: Level) -> Scalar | None:
        """What the network is told of the level; None for the schedule's index."""
        return None

    def _refuse_singular(self, det: Scalar, level: Level) -> None:
        """On a CUDA tensor the check would wait for the device: there the division gives inf."""
        name = type(self).__name__.lower()
        if isinstance(det, Tensor):
            if det.device.type != "cpu" or torch.compiler.is_compiling() or bool((det != 0).all()):
                return
            clean = bool(((det == 0) & (torch.as_tensor(level.sigma) == 0)).any())
        elif det != 0.0:
            return
        else:
            clean = level.is_clean
        if clean:
            raise LevelError(
                f"cannot decode eps from {name} at sigma = 0 (clean data): there x holds no noise",
                code="DK502",
                fix="end the grid before, or take x itself as the result",
            )
        raise LevelError(
            f"cannot decode x0 from {name} at alpha = 0 (pure noise): there the target carries no information about x0",
            code="DK501",
            fix="use parameterization x0, or start the grid later (sample.start)",
            notes=["background: arXiv:2305.08891"],
        )


@lru_cache(maxsize=8192)
def _host_rows(parameterization: Parameterization, level: Level) -> Rows:
    """`inverse` at a level of floats, which every batch on a grid asks for again."""
    p, q, r, s = (float(v) for v in parameterization.inverse(level))
    return p, q, r, s
