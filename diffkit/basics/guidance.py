"""Guidance that many papers use: clipping, dynamic thresholding, classifier-free guidance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Codec, Data, Denoiser, Estimate, Guidance, Identity, Level, Shape


@dataclass(frozen=True)
class Clip(Guidance):
    """Clamp x0 to [low, high]; eps follows from x.

    Raises ValueError unless low < high, or if [-1, 1] would clamp the unbounded output of a codec.
    Source: Ho et al. 2020 (arXiv:2006.11239), code. Differs: diffusers keeps the old eps in DDIM.
    """

    low: float = -1.0
    high: float = 1.0
    data: Data | None = field(default=None, repr=False)
    codec: Codec | None = field(default=None, repr=False)
    law_options = ({"low": -0.5, "high": 2.0},)
    limits_range = True

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"clip requires low < high, got [{self.low}, {self.high}]")
        if (self.low, self.high) == (-1.0, 1.0) and _is_unbounded(self.data, self.codec):
            raise ValueError("clip to [-1, 1] would change the codec's unbounded output; set low and high to its range")

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def clipped(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            estimate = denoise(x, level, **cond)
            return estimate.with_x0(estimate.x0.clamp(self.low, self.high))

        return clipped


@dataclass(frozen=True)
class Threshold(Guidance):
    """Dynamic thresholding: clamp x0 to [-s, s] and divide by s, s = max(1, quantile of |x0| over the example).

    Raises ValueError if the output of the codec is not in [-1, 1].
    Source: Saharia et al. 2022 (arXiv:2205.11487), sec. 2.3.
    """

    quantile: Annotated[float, Field(gt=0, le=1)] = 0.995
    data: Data | None = field(default=None, repr=False)
    codec: Codec | None = field(default=None, repr=False)
    limits_range = True

    def __post_init__(self) -> None:
        if _is_unbounded(self.data, self.codec):
            raise ValueError("threshold would scale the codec's unbounded output to [-1, 1]; remove it, or use clip")

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def thresholded(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            estimate = denoise(x, level, **cond)
            size = torch.quantile(estimate.x0.flatten(1).abs().float(), self.quantile, dim=1)
            s = size.clamp(min=1.0).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
            return estimate.with_x0(torch.minimum(torch.maximum(estimate.x0, -s), s) / s)

        return thresholded


def _is_unbounded(data: Data | None, codec: Codec | None) -> bool:
    """Return whether a codec is in use, and its output is not in [-1, 1]."""
    if data is None or codec is None or isinstance(codec, Identity):
        return False
    return not codec.spec(data.spec).bounded


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance: (1 - scale) unlabelled + scale labelled estimate; scale = 1 turns guidance off.

    Examples without a label are not guided, and a call without labels warns. The unlabelled estimate uses the null
    class `shape.classes`, or no label at all if no `shape` is given, which means the same to every network of diffkit.
    Raises ValueError if `shape` has no classes.
    Source: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6. Differs: scale = 1 + their w.
    """

    shape: Shape | None = None
    scale: Annotated[float, Field(ge=0)] = 2.0
    law_options = ({"scale": 0.0}, {"scale": 1.0}, {"scale": 7.5})
    needs_null = True

    def __post_init__(self) -> None:
        if self.shape is not None and self.shape.classes is None:
            raise ValueError("cfg requires data with classes, since it compares labelled with unlabelled estimates")

    def __call__(self, denoise: Denoiser) -> Denoiser:
        if self.scale == 1.0:
            return denoise

        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            labelled = denoise(x, level, **cond)
            label = cond.pop("label", None)
            if label is None:
                fix = "pass label=, such as sample(partial(denoise, label=label), ...)"
                warnings.warn(f"cfg guides nothing, because the denoiser is called without labels; {fix}", stacklevel=2)
                return labelled
            if self.shape is not None and self.shape.classes is not None:
                cond["label"] = torch.full_like(label, self.shape.classes)
            null = denoise(x, level, **cond)
            return null.interpolate(labelled, self.scale)

        return guided
