"""Parameterizations: the quantity that a network predicts, and its conversion to x0 and eps.

An output is a linear combination y = a x0 + b eps. Together with x = alpha x0 + sigma eps this is a 2x2 system with
determinant det = alpha b - sigma a, and target, decoding and loss weight all follow from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from . import scalar
from .errors import LevelError
from .estimate import Estimate
from .interface import attribute
from .level import Level, broadcast, weighted_sum
from .scalar import Scalar


class Parameterization(ABC):
    """Base of parameterizations. Implement `coefficients`; target, decoding and loss weight follow from it."""

    @attribute
    def provides(self) -> tuple[str, ...]:
        """Names of the entries that `decode` adds to `Estimate.aux`; default none."""
        return ()

    @attribute
    def full_precision(self) -> bool:
        """Whether outputs in half precision are refused because decoding amplifies their error; default False."""
        return False

    @abstractmethod
    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        """Return (a, b) of y = a x0 + b eps, finite at every level."""

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """Compute what the network is trained to output: a x0 + b eps.

        Args:
            x0: Clean data: (B, C, *S).
            eps: The noise: (B, C, *S).
            level: The level of the noisy data.

        Returns:
            The target: (B, C, *S).
        """
        a, b = (broadcast(c, x0) for c in self.coefficients(level))
        return weighted_sum(a, x0, b, eps)

    def decode(self, y: Tensor, x: Tensor, level: Level) -> Estimate:
        """Convert a network output to an estimate: x0 = (b x - sigma y) / det, eps = (alpha y - a x) / det.

        Args:
            y: Output of the network: (B, C, *S).
            x: Noisy data at `level`: (B, C, *S).
            level: The level of x.

        Returns:
            The estimate at `level`.

        Raises:
            LevelError: det = 0, so that x and y hold the same information (DK501, DK502).
        """
        p, q, r, s = (broadcast(v, x) for v in self.inverse(level))
        return Estimate(level, weighted_sum(p, x, q, y), weighted_sum(r, x, s, y))

    def inverse(self, level: Level) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """Return (p, q, r, s) with x0 = p x + q y and eps = r x + s y. Raises LevelError if det = 0."""
        a, b = self.coefficients(level)
        det = level.alpha * b - level.sigma * a
        self._refuse_singular(det, level)
        p, q, r, s = (scalar.divide(v, det) for v in (b, -level.sigma, -a, level.alpha))
        return p, q, r, s

    def weight(self, level: Level) -> Scalar:
        """Return (det / sigma)^2, the weight on |x0 - x0_hat|^2 that equals a unit weight on |y - target|^2."""
        a, b = self.coefficients(level)
        return scalar.divide(level.alpha * b - level.sigma * a, level.sigma) ** 2

    def out_channels(self, channels: int) -> int:
        """Return the number of output channels of a network for data with `channels` channels."""
        return channels

    def c_in(self, level: Level) -> Scalar:
        """Return the factor of x at the input of the network."""
        return 1.0

    def c_noise(self, level: Level) -> Scalar | None:
        """Return the noise level as the network receives it, or None for the index of the schedule."""
        return None

    def _refuse_singular(self, det: Scalar, level: Level) -> None:
        """Raise LevelError if det = 0. Tensors on other devices than the CPU are not read: the division gives inf."""
        if isinstance(det, Tensor):
            if det.device.type != "cpu" or torch.compiler.is_compiling() or bool((det != 0).all()):
                return
            clean = bool(((det == 0) & (torch.as_tensor(level.sigma) == 0)).any())
        elif det != 0.0:
            return
        else:
            clean = level.is_clean
        name = type(self).__name__.lower()
        if clean:
            raise LevelError(
                f"cannot decode eps from {name} at sigma = 0 (clean data), where x holds no noise",
                code="DK502",
                fix="end the grid before this level, or use x itself as the result",
            )
        raise LevelError(
            f"cannot decode x0 from {name} at alpha = 0 (pure noise), where the target holds no information about x0",
            code="DK501",
            fix="use parameterization x0, or start sampling with less noise (sample.start)",
            notes=["background: arXiv:2305.08891"],
        )
