"""A denoiser with an x0 that is a polynomial in half_logsnr and does not depend on x."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.estimate import Estimate
from diffkit.level import Level, broadcast


class PolynomialOracle:
    """A denoiser with x0 = sum_k coefficients_k half_logsnr^k for every x; coefficients: numbers or tensors (*S).

    An exponential integrator of order p is exact for degree p - 1, so that wrong coefficients show in one step.
    Raises LevelError at sigma = 0, and ValueError without coefficients. Identity F4 of docs/theory/identities.md.
    """

    def __init__(self, coefficients: Sequence[float | Tensor]) -> None:
        if len(coefficients) == 0:
            raise ValueError("a polynomial requires at least one coefficient")
        self.coefficients = tuple(coefficients)

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        clock = broadcast(level.half_logsnr, x)
        x0 = torch.zeros_like(x)
        for c in reversed(self.coefficients):
            x0 = x0 * clock + (c.to(x) if isinstance(c, Tensor) else c)
        return Estimate.from_x0(x, level, x0)
