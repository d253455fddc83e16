"""Weights and inputs that a formula gives, so that a golden file needs only what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def wave(shape: Sequence[int], phase: float, size: float) -> Tensor:
    """size sin(0.7 k^1.1 + phase) for the k-th number, float32."""
    count = torch.Size(shape).numel()
    k = torch.arange(count, dtype=torch.float64)
    return (size * torch.sin(0.7 * k**1.1 + phase)).float().reshape(tuple(shape))


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict: matrices with a gain that keeps signals alive, norms near 1, biases near 0."""
    made = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        fan = torch.Size(shape[1:]).numel()
        centre = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        made[name] = centre + wave(shape, float(number), 0.2 if len(shape) == 1 else (2.0 / fan) ** 0.5)
    return made


def inputs(channels: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """x: (2, C, S, S), t: (2,), label: (2,)."""
    return wave((2, channels, size, size), 0.3, 1.0), torch.tensor([7.0, 640.25]), torch.tensor([2, 0])
