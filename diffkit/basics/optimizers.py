"""Adam and AdamW, with the fused kernels of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit.optimizer import NamedParameters, Optimizer

Beta = Annotated[float, Field(ge=0, lt=1)]
FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices with a fused kernel: one pass over weights and moments."""


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= lr m' / (sqrt(v') + eps), m' and v' bias-corrected.

    `weight_decay` adds weight_decay * w to the gradient g.
    Source: Kingma & Ba 2015 (arXiv:1412.6980), Algorithm 1.
    """

    lr: Annotated[float, Field(gt=0, le=10)] = 2e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        return self._build(torch.optim.Adam, named_parameters)

    def _build(
        self, cls: type[torch.optim.Adam | torch.optim.AdamW], named_parameters: NamedParameters
    ) -> torch.optim.Optimizer:
        fused = all(p.device.type in FUSED and _is_dense(p) for _, p in named_parameters)
        return cls(
            [parameter for _, parameter in named_parameters],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused,
        )


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay acts on the weights directly: w -= lr weight_decay w.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), Algorithm 2.
    Differs: the decay is multiplied with the learning rate, as in torch; the paper uses a separate factor.
    """

    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        return self._build(torch.optim.AdamW, named_parameters)


def _is_dense(parameter: Tensor) -> bool:
    """Return whether the elements of a tensor fill its memory without gaps, as fused kernels require."""
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()
