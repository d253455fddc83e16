"""Initialisation of the weights of the default networks.

DDPM draws every weight uniformly with variance 1 / fan_avg, and starts each residual branch and the output near zero,
so that the untrained network passes its input through and predicts about zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

Style = Literal["ddpm", "ddpm-zero", "openai", "torch"]
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer = TypeVar("Layer", bound=Weighted)


@dataclass(frozen=True)
class Initialisation:
    """Initialise a layer and return it; `last` is for the last layer of a residual branch or of the network.

    ============ =========================== ===================== =====================================
    style        weights                     last layers           used by
    ============ =========================== ===================== =====================================
    `ddpm`       variance 1 / fan_avg        variance 1e-10 / ...  Ho et al. 2020, authors' code
    `ddpm-zero`  variance 1 / fan_avg        0                     most reimplementations
    `openai`     PyTorch's default           0                     Nichol & Dhariwal 2021, authors' code
    `torch`      PyTorch's default           PyTorch's default     diffusers
    ============ =========================== ===================== =====================================

    Biases start at 0 unless the style leaves the layer to PyTorch.
    """

    style: Style = "ddpm"

    def layer(self, layer: Layer, pieces: int = 1) -> Layer:
        """Initialise an inner layer; `pieces` layers that are fused along the outputs are drawn separately."""
        if self.style in ("ddpm", "ddpm-zero"):
            for weight in layer.weight.detach().chunk(pieces):
                variance_scaling_(weight, 1.0)
            _zero_bias(layer)
        return layer

    def last(self, layer: Layer) -> Layer:
        """Initialise the last layer of a branch, so that its output starts near zero."""
        if self.style != "torch":
            variance_scaling_(layer.weight, 1e-10 if self.style == "ddpm" else 0.0)
            _zero_bias(layer)
        return layer


def variance_scaling_(weight: Tensor, scale: float) -> None:
    """Fill `weight`: (out, in, *kernel) with uniform numbers of variance scale / fan_avg.

    fan_avg = (fan_in + fan_out) / 2.

    Source: Glorot & Bengio 2010, eq. 16 (scale 1).
    """
    fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * weight[0, 0].numel()
    bound = math.sqrt(3.0 * scale / fan_avg)
    nn.init.uniform_(weight, -bound, bound)


def _zero_bias(layer: Weighted) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
