"""Guidance in an interval of noise levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, Shape, broadcast, build


@dataclass(frozen=True)
class Interval(Guidance):
    """Apply `inner` only at levels with low < half_logsnr <= high; elsewhere the estimate is not guided.

    At high noise guidance loses variety, and at low noise it changes little, so both ends may be left out. The network
    is evaluated once outside of the interval.

    inner   the guidance
    low     noisiest half_logsnr, -log of the paper's sigma_hi; None: no limit
    high    cleanest half_logsnr, -log of sigma_lo; None: no limit. The paper has (-1.08, 1.27) for ImageNet-512

    Raises ValueError unless low < high.
    Source: Kynkaanniemi et al. 2024 (arXiv:2404.07724), sec. 3, the piecewise constant weight.
    """

    inner: Guidance
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"interval requires low < high in half_logsnr, got {self.low} and {self.high}")

    @staticmethod
    def law_example(folder: Path) -> Interval:
        """Return an instance on which the laws are tested."""
        return Interval(build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=3.0), low=-1.0, high=1.0)

    def __call__(self, denoise: Denoiser) -> Denoiser:
        inner = self.inner(denoise)

        low = float("-inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high

        def limited(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            h = level.half_logsnr
            if not isinstance(h, Tensor):
                return (inner if low < h <= high else denoise)(x, level, **cond)
            guided, plain = inner(x, level, **cond), denoise(x, level, **cond)
            inside = torch.as_tensor(broadcast((low < h) & (h <= high), x), dtype=torch.bool)
            x0, eps = (torch.where(inside, a, b) for a, b in ((guided.x0, plain.x0), (guided.eps, plain.eps)))
            return replace(guided, x0=x0, eps=eps)

        return limited if inner is not denoise else denoise
