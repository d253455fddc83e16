"""JPEG as an operator: cosine coefficients of blocks of 8 x 8 pixels, rounded to multiples of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import UsageError

from .operator import Operator, cosine_basis

BLOCK = 8
TABLE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
"""Steps of luminance coefficients at quality 50, row by row: ITU-T T.81, table K.1."""


@dataclass(frozen=True)
class JPEG(Operator):
    """Measure the picture after JPEG compression; it is not linear, and its gradient passes rounding unchanged.

    A is a projection, A A x = A x, so A^+ is the identity.
    Source: ITU-T T.81, annex A.3 and table K.1; the scale of the table by quality is that of libjpeg.
    Differs: every channel uses the table of luminance, without conversion of colours or coarser colour; pixels are not
    rounded or limited.
    """

    quality: Annotated[int, Field(ge=1, le=95)] = 10
    linear = False

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % BLOCK or width % BLOCK:
            low, high = ([n // BLOCK * BLOCK + more for n in (height, width)] for more in (0, BLOCK))
            sizes = " or ".join(f"{h}x{w}" for h, w in (low, high) if h and w)
            message = f"JPEG works on blocks of 8 x 8 pixels, got a picture of {height}x{width}"
            raise UsageError(message, code="DK030", fix=f"use a run of pictures of {sizes} pixels")
        basis, step = cosine_basis(BLOCK, x), self._steps(x)
        blocks = x.reshape(*x.shape[:2], height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
        exact = basis @ blocks @ basis.T / step
        rounded = exact + (torch.round(exact) - exact).detach()
        restored: Tensor = basis.T @ (rounded * step) @ basis
        return restored.transpose(3, 4).reshape(x.shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y

    def _steps(self, x: Tensor) -> Tensor:
        """Return the step of each coefficient, (8, 8), for pixels in [-1, 1]: 127.5 is one."""
        percent = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        steps = [min(255, max(1, (step * percent + 50) // 100)) / 127.5 for step in TABLE]
        return x.new_tensor(steps).reshape(BLOCK, BLOCK)
