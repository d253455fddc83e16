"""What a perfect network would output, whatever further channels its parameterization asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.level import Level
from diffkit.parameterization import Parameterization


def speak(parameterization: Parameterization, x0: Tensor, eps: Tensor, level: Level, fill: float = 0.0) -> Tensor:
    """The output that means (x0, eps): (B, C, *S) -> (B, C', *S); channels beyond C hold `fill`."""
    y = parameterization.target(x0, eps, level)
    more = parameterization.out_channels(x0.shape[1]) - y.shape[1]
    if more <= 0:
        return y
    return torch.cat([y, torch.full_like(y[:, :1], fill).expand(-1, more, *y.shape[2:])], 1)
