"""The affine codec: diffuse shifted and scaled data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffkit.codec import Codec
from diffkit.data import DataSpec

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Affine(Codec):
    """z = (x - shift) * scale, x = z / scale + shift, with one value each, or one value a channel.

    Takes data to mean 0 and a chosen spread. Raises ValueError where a scale is 0, or the values do not fit the
    channels.
    """

    shift: PerChannel = 0.0
    scale: PerChannel = 1.0
    law_options = ({"shift": 0.3, "scale": 0.5}, {"shift": (0.1, 0.2, 0.3), "scale": (0.5, 1.0, 2.0)})

    def __post_init__(self) -> None:
        if 0 in _values(self.scale):
            raise ValueError("scale is 0, which has no inverse")
        counts = {len(value) for value in (self.shift, self.scale) if isinstance(value, tuple)}
        if 0 in counts or len(counts) > 1:
            raise ValueError("shift and scale need one value, or one value a channel, both for the same channels")

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return (x - _column(self.shift, x)) * _column(self.scale, x)

    def decode(self, z: Tensor) -> Tensor:
        return z / _column(self.scale, z) + _column(self.shift, z)

    def spec(self, data: DataSpec) -> DataSpec:
        """`bounded` where the data is and [-1, 1] stays within itself; no bins, as z is not what is stored."""
        for option in ("shift", "scale"):
            count = len(_values(getattr(self, option)))
            if count not in (1, data.channels):
                raise ValueError(f"codec affine: {option} has {count} values, the data {data.channels} channels")
        shifts, scales = (torch.tensor(_values(option)) for option in (self.shift, self.scale))
        within = bool(((1 + shifts.abs()) * scales.abs() <= 1).all())
        return replace(data, bounded=data.bounded and within, bins=None)


def _values(option: PerChannel) -> tuple[float, ...]:
    return option if isinstance(option, tuple) else (option,)


def _column(option: PerChannel, x: Tensor) -> Tensor | float:
    """What broadcasts along the channels of x: (B, C, *S): the one value, or (C, 1, ...)."""
    if not isinstance(option, tuple):
        return option
    return torch.tensor(option, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 2))
