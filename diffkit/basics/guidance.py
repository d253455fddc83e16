"""Guidance that every paper uses: clipping, thresholding, classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit.denoiser import Denoiser
from diffkit.estimate import Estimate
from diffkit.guidance import Guidance
from diffkit.level import Level
from diffkit.network import Shape


@dataclass(frozen=True)
class Clip(Guidance):
    """x0 clamped to [low, high]; eps follows from x. Raises ValueError unless low < high.

    Source: Ho et al. 2020 (arXiv:2006.11239), code. Differs: diffusers keeps the old eps in DDIM.
    """

    low: float = -1.0
    high: float = 1.0
    law_options = ({"low": -0.5, "high": 2.0},)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"clip needs low < high, not [{self.low}, {self.high}]")

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def clipped(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            estimate = denoise(x, level, **cond)
            return estimate.with_x0(estimate.x0.clamp(self.low, self.high))

        return clipped


@dataclass(frozen=True)
class Threshold(Guidance):
    """Dynamic thresholding: x0 clamped to [-s, s] and divided by s, s = max(1, quantile of |x0| of the sample).

    Source: Saharia et al. 2022 (arXiv:2205.11487), sec. 2.3.
    """

    quantile: Annotated[float, Field(gt=0, le=1)] = 0.995

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def thresholded(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            estimate = denoise(x, level, **cond)
            size = torch.quantile(estimate.x0.flatten(1).abs().float(), self.quantile, dim=1)
            s = size.clamp(min=1.0).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
            return estimate.with_x0(torch.minimum(torch.maximum(estimate.x0, -s), s) / s)

        return thresholded


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """(1 - scale) null + scale conditional, on x0 and eps alike; scale = 1 is no guidance.

    Only examples with a label are guided: the null class is `shape.classes`. Raises ValueError where the network has
    no classes. Source: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6. Differs: scale = 1 + their w.
    """

    shape: Shape
    scale: Annotated[float, Field(ge=0)] = 2.0
    law_options = ({"scale": 0.0}, {"scale": 1.0}, {"scale": 7.5})
    needs_null = True

    def __post_init__(self) -> None:
        if self.shape.classes is None:
            raise ValueError("cfg needs data with classes: it compares a labelled with an unlabelled estimate")

    def __call__(self, denoise: Denoiser) -> Denoiser:
        if self.scale == 1.0:
            return denoise
        classes = self.shape.classes
        assert classes is not None

        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            labelled = denoise(x, level, **cond)
            label = cond.get("label")
            if label is None:
                return labelled
            null = denoise(x, level, **{**cond, "label": torch.full_like(label, classes)})
            return null.interpolate(labelled, self.scale)

        return guided
