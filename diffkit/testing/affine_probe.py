"""The exact law of a sampler, read off the real one: no statistics are involved.

With an affine denoiser a linear sampler is x -> A x + b + noise. Run once as one batch on the inputs 0 and e_j, and
on unit noises in turn, it shows every column of A, b, and the factor of Q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.denoiser import Denoiser
from diffkit.level import Level
from diffkit.sampler import Sampler, StepInfo, sample

from .affine import Affine


class NotAffineError(ValueError):
    """The sampler is not affine in x and its noises, so its law is not A, b and Q."""


class _Unit:
    """A noise source whose draw k is 1 in one coordinate of the rows kept for it, and 0 in all others."""

    def __init__(self, first: int, dimensions: int) -> None:
        self.first, self.dimensions = first, dimensions
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        row = self.first + self.calls * self.dimensions
        rows = min(self.dimensions, len(x) - row)
        if rows > 0:
            z.view(len(x), -1)[row : row + rows] = torch.eye(self.dimensions, dtype=x.dtype)[:rows]
        self.calls += 1
        return z


def draws(denoise: Denoiser, sampler: Sampler[Any], levels: Sequence[Level], dimensions: int) -> int:
    """How many times the sampler asks for noise along these levels."""
    count = _Unit(1, dimensions)
    sample(denoise, sampler, levels, torch.zeros(1, dimensions, dtype=torch.float64), noise=count)
    return count.calls


def probe(
    denoise: Denoiser,
    sampler: Sampler[Any],
    levels: Sequence[Level],
    dimensions: int,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Affine:
    """A, b, Q of the whole run from levels[0] to levels[-1], for data x: (D,), in float64.

    Raises NotAffineError where twice the input does not move the result twice as far.
    """
    d = dimensions
    count = draws(denoise, sampler, levels, d)
    x = torch.zeros(2 + d + count * d, d, dtype=torch.float64)
    x[1 : 1 + d] = torch.eye(d, dtype=torch.float64)
    x[-1] = 2.0
    y = sample(denoise, sampler, levels, x, noise=_Unit(1 + d, d), on_step=on_step)
    b, columns, noises, check = y[0], y[1 : 1 + d] - y[0], y[1 + d : -1] - y[0], y[-1]
    A = columns.T.contiguous()
    want = A @ torch.full((d,), 2.0, dtype=torch.float64) + b
    if not float((check - want).abs().max()) <= 1e-8 * max(1.0, float(want.abs().max())):
        raise NotAffineError(f"{type(sampler).__name__.lower()} is not affine in x under an affine denoiser")
    return Affine(A, b, noises.T @ noises)
