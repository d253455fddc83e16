"""A denoiser that ignores x: its x0 is a polynomial in half_logsnr."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.estimate import Estimate
from diffkit.level import Level, broadcast


class PolynomialOracle:
    """x0 = sum_k coefficients_k half_logsnr^k, whatever x; coefficients: numbers or tensors (*S).

    An exponential integrator of order p is exact on degree p - 1, so that wrong coefficients show in one step.
    Raises LevelError where sigma = 0, ValueError where there are no coefficients. Identity F4.
    """

    def __init__(self, coefficients: Sequence[float | Tensor]) -> None:
        if len(coefficients) == 0:
            raise ValueError("a polynomial needs at least one coefficient")
        self.coefficients = tuple(coefficients)

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        clock = broadcast(level.half_logsnr, x)
        x0 = torch.zeros_like(x)
        for c in reversed(self.coefficients):
            x0 = x0 * clock + (c.to(x) if isinstance(c, Tensor) else c)
        return Estimate.from_x0(x, level, x0)
