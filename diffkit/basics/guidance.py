"""Guidance that many papers use: clipping, dynamic thresholding, classifier-free guidance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby, pairwise
from typing import Annotated

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from diffkit import (
    Codec,
    Conditions,
    ConditionSpec,
    Data,
    Denoiser,
    Estimate,
    Guidance,
    Identity,
    Level,
    Shape,
    Unchanged,
    evaluate,
    plain,
)

Encoded = Callable[[str, torch.device], dict[str, Tensor]]
"""The arguments of the network for the negative of a condition, on a device."""


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
    """Classifier-free guidance: null + scale (conditional - null), of estimates with and without conditions.

    Scale 1 turns it off. The estimates are evaluated in one call. Examples without a condition are not guided, and a
    call without conditions warns.

    scale      how far to go from the null to the conditional estimate; 1 + w of the paper
    names      conditions that the null estimate lacks; all by default. The others are in both estimates
    negative   values that replace the null of conditions, by name, such as {text: blurred}
    scales     a scale for each of several conditions, in place of `scale` and `names`. Conditions are added in this
               order: null + scale_1 (first - null) + scale_2 (both - first) + ..., one more evaluation for each

    Raises ValueError if there are no conditions, a name is not one of them, or options contradict each other.
    If `conditions` is None, the null is the class `shape.classes`; if `shape` is None too, the label is left out.
    Source: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6; several scales: Brooks et al. 2023 (arXiv:2211.09800), eq. 3;
    several conditions at one scale: Liu et al. 2022 (arXiv:2206.01714), eq. 11. Differs: scale = 1 + their w.
    """

    shape: Shape | None = None
    scale: Annotated[float, Field(ge=0)] = 2.0
    names: tuple[str, ...] = ()
    negative: dict[str, JsonValue] | None = None
    scales: dict[str, Annotated[float, Field(ge=0)]] | None = None
    conditions: Conditions | None = field(default=None, repr=False)
    law_options = ({"scale": 0.0}, {"scale": 1.0}, {"scale": 7.5})

    def __post_init__(self) -> None:
        if self.scales is not None and (self.names or self.scale != 2.0):
            raise ValueError("scales states the conditions and their scales, so scale and names have no effect")
        if self._nulls is None:
            if self.shape is not None:
                raise ValueError("cfg requires data with conditions, since it compares estimates with and without them")
            return
        known = ", ".join(self._nulls.conditioners)
        for name in (*self.names, *(self.scales or ()), *(self.negative or ())):
            if name not in self._nulls.conditioners:
                raise ValueError(f"cfg names the condition {name}, but the model has: {known}")
        if useless := [name for name in self.negative or () if name not in self._guided]:
            raise ValueError(f"negative holds {useless[0]}, which cfg does not guide; add it to names")

    @property
    def needs_null(self) -> bool:
        return bool(self.null_conditions)

    @property
    def null_conditions(self) -> tuple[str, ...]:
        return tuple(name for name in self._guided if name not in (self.negative or {}))

    @property
    def _nulls(self) -> Conditions | None:
        """The conditions, whose null is known; None without `conditions` and `shape`."""
        if self.conditions is not None and self.conditions.conditioners:
            return self.conditions
        if self.shape is None or self.shape.classes is None:
            return None
        return Conditions({"label": Unchanged(ConditionSpec(classes=self.shape.classes))})

    @property
    def _guided(self) -> tuple[str, ...]:
        """The conditions that the null estimate lacks."""
        every = ("label",) if self._nulls is None else tuple(self._nulls.conditioners)
        return tuple(self.scales or self.names or every)

    def _steps(self) -> list[tuple[float, list[str]]]:
        """The scales, and the conditions that each adds: together if neighbours have one scale, none for scale 1."""
        scales = self.scales or dict.fromkeys(self._guided, self.scale)
        steps = [(scale, list(names)) for scale, names in groupby(scales, key=lambda name: scales[name])]
        return steps[1:] if steps[0][0] == 1.0 else steps

    def __call__(self, denoise: Denoiser) -> Denoiser:
        steps, nulls, every = self._steps(), self._nulls, self._guided
        if not steps:
            return denoise
        encoded = cache(self._encoded)  # once for all steps
        missing = [[name for _, names in steps[k:] for name in names] for k in range(len(steps) + 1)]

        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            sets = [self._without(nulls, cond, names, encoded) if names else cond for names in missing]
            if sets[0].keys() == cond.keys() and all(sets[0][name] is cond[name] for name in cond):
                fix = f"pass {every[0]}=, such as sample(partial(denoise, {every[0]}={every[0]}), ...)"
                message = f"cfg guides nothing, because the denoiser is called without {' or '.join(every)}; {fix}"
                warnings.warn(plain(message), stacklevel=2)
                return denoise(x, level, **cond)
            estimates = evaluate(denoise, x, level, sets)
            total = estimates[0]
            for (scale, _), (before, after) in zip(steps, pairwise(estimates), strict=True):
                moved = before.interpolate(after, scale)
                if total is before:
                    total = moved
                else:
                    x0, eps = moved.x0 + (total.x0 - before.x0), moved.eps + (total.eps - before.eps)
                    total = replace(moved, x0=x0, eps=eps)
            return total.with_aux(unguided=estimates[-1].x0, null=estimates[0].x0)

        return guided

    def _without(
        self, nulls: Conditions | None, cond: Mapping[str, Tensor], names: list[str], encoded: Encoded
    ) -> dict[str, Tensor]:
        """Replace conditions by their null, or by their negative, which has one row."""
        if nulls is None:
            return {name: value for name, value in cond.items() if name not in names}
        changed = nulls.without(cond, names)
        for name in names:
            if name in (self.negative or {}):
                changed |= encoded(name, next(iter(cond.values())).device)
        return changed

    def _encoded(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """Return the arguments of the network for the negative of a condition."""
        nulls, negative = self._nulls, self.negative
        assert nulls is not None
        assert negative is not None
        return nulls.fixed({name: nulls.read(name, negative[name], 1).to(device)})
