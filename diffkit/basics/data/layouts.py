"""Where the components of plane mixtures lie; all fill [-1, 1]^2."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["ring", "grid", "moons", "spiral", "checkerboard", "explicit"]
DEFAULT_COMPONENTS: dict[Layout, int] = {"ring": 8, "grid": 25, "moons": 32, "spiral": 40, "checkerboard": 8}
TURNS = 1.5


def centres(layout: Layout, components: int) -> Tensor:
    """(K, 2) float64. Raises ValueError where the layout cannot hold `components`."""
    build = {"ring": _ring, "grid": _grid, "moons": _moons, "spiral": _spiral, "checkerboard": _checkerboard}[layout]
    return build(components)


def _ring(k: int) -> Tensor:
    return _polar(torch.ones(k, dtype=torch.float64), 2 * math.pi * torch.arange(k, dtype=torch.float64) / k)


def _grid(k: int) -> Tensor:
    side = math.isqrt(k)
    if side * side != k or k < 4:
        raise ValueError(f"layout grid needs a square number of components, 4, 9, 16, ...; components is {k}")
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def _moons(k: int) -> Tensor:
    """Two half circles, the upper one first."""
    if k % 2 or k < 4:
        raise ValueError(f"layout moons needs an even number of components, 4 or more; components is {k}")
    arc = _polar(torch.ones(k // 2, dtype=torch.float64), torch.linspace(0, math.pi, k // 2, dtype=torch.float64))
    upper = arc - torch.tensor([0.5, 0.25], dtype=torch.float64)
    return torch.cat([upper, -upper]) / 1.5


def _spiral(k: int) -> Tensor:
    """An Archimedean spiral; its components are evenly spaced along the arc, to first order."""
    radius = torch.linspace(0.01, 1, k, dtype=torch.float64).sqrt()
    return _polar(radius, 2 * math.pi * TURNS * radius)


def _checkerboard(k: int) -> Tensor:
    side = math.isqrt(2 * k)
    if side * side != 2 * k:
        raise ValueError(f"layout checkerboard needs 2, 8, 18, ... components (half of an even square); it is {k}")
    fields = torch.tensor([(i, j) for i in range(side) for j in range(side) if (i + j) % 2 == 0], dtype=torch.float64)
    return (2 * fields + 1) / side - 1


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
