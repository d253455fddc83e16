"""The affine codec: diffuse shifted and scaled data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffkit import Codec, DataSpec

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Affine(Codec):
    """Shift and scale the data: z = (x - shift) * scale, x = z / scale + shift, with one value, or one value per
    channel.

    Raises ValueError if a scale is 0 or the number of values does not fit the channels.
    """

    shift: PerChannel = 0.0
    scale: PerChannel = 1.0
    law_options = ({"shift": 0.3, "scale": 0.5}, {"shift": (0.1, 0.2, 0.3), "scale": (0.5, 1.0, 2.0)})

    def __post_init__(self) -> None:
        if 0 in _values(self.scale):
            raise ValueError("scale is 0, which has no inverse")
        counts = {len(value) for value in (self.shift, self.scale) if isinstance(value, tuple)}
        if 0 in counts or len(counts) > 1:
            raise ValueError("shift and scale must have one value, or the same number of values, one per channel")

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return (x - _column(self.shift, x)) * _column(self.scale, x)

    def decode(self, z: Tensor) -> Tensor:
        return z / _column(self.scale, z) + _column(self.shift, z)

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z: `bounded` if z stays in [-1, 1], without bins."""
        for option in ("shift", "scale"):
            count = len(_values(getattr(self, option)))
            if count not in (1, data.channels):
                raise ValueError(f"codec affine: {option} has {count} values for {data.channels} channels")
        shifts, scales = (torch.tensor(_values(option)) for option in (self.shift, self.scale))
        within = bool(((1 + shifts.abs()) * scales.abs() <= 1).all())
        return replace(data, bounded=data.bounded and within, bins=None)


def _values(option: PerChannel) -> tuple[float, ...]:
    return option if isinstance(option, tuple) else (option,)


def _column(option: PerChannel, x: Tensor) -> Tensor | float:
    """Return the single value, or the values as (C, 1, ...), to broadcast to x: (B, C, *S)."""
    if not isinstance(option, tuple):
        return option
    return torch.tensor(option, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 2))
