"""Adaptive projected guidance: a guidance whose change along the estimate itself is reduced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, Shape, broadcast, build


@dataclass(frozen=True)
class APG(Guidance):
    """Multiply the part of the change of `inner` that is parallel to the unguided x0 by eta.

    x0 = x0_u + across + eta along, where along is the projection of the change x0_guided - x0_u on x0_u, per example.
    The change along x0 raises contrast and saturation; what lies across it changes the picture.

    inner      the guidance, such as cfg
    eta        share of the change along x0 that remains; 1: all
    radius     largest norm of the change of an example, before it is projected; None: no limit
    momentum   factor of the sum of the changes at noisier levels, which is added before all else: sum_k = change_k +
               momentum * sum_(k-1). Below 0, such as -0.5, directions that were taken already are taken less; 0: none.
               An evaluation at the first level, or of another batch size, starts a new sum

    Source: Sadat et al. 2025 (arXiv:2410.02416), Algorithm 1.
    Differs: the radius limits the whole change, which is (w - 1) times the paper's difference; with a sampler of
    several evaluations a step, each one is a step of the momentum.
    """

    inner: Guidance
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    radius: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    law_exemptions = {  # noqa: RUF012 - never changed
        "options-used": "momentum acts from the second level of a trajectory on; apg-formula and apg-momentum test all",
    }

    @staticmethod
    def law_example(folder: Path) -> APG:
        """Return an instance on which the laws are tested."""
        return APG(build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=3.0), eta=0.3, radius=1.0)

    def __call__(self, denoise: Denoiser) -> Denoiser:
        inner, earlier = self.inner(denoise), _Sum(self.momentum)

        def projected(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            guided = inner(x, level, **cond)
            plain = guided.aux["unguided"] if "unguided" in guided.aux else denoise(x, level, **cond).x0
            change = guided.x0 - plain
            if self.momentum:
                change = earlier.add(change, float(torch.as_tensor(level.half_logsnr).max()))
            if self.radius is not None:
                size = change.flatten(1).norm(dim=1)
                change = change * broadcast((self.radius / size.clamp(min=1e-30)).clamp(max=1.0), x)
            dot, square = ((one * plain).flatten(1).sum(1) for one in (change, plain))
            share = torch.where(square > 0, dot / torch.where(square > 0, square, 1.0), 0.0)
            along = broadcast(share, x) * plain
            return guided.with_x0(plain + change - (1.0 - self.eta) * along)

        return projected if inner is not denoise else denoise


class _Sum:
    """The weighted sum of the changes of one trajectory, from its first level to cleaner ones."""

    def __init__(self, momentum: float) -> None:
        self.momentum, self.first = momentum, math.inf
        self.total: Tensor | None = None

    def add(self, change: Tensor, half_logsnr: float) -> Tensor:
        """Return change + momentum * the sum before: (B, *S)."""
        if self.total is None or half_logsnr <= self.first or self.total.shape != change.shape:
            self.first, self.total = half_logsnr, change
        else:
            self.total = change + self.momentum * self.total
        return self.total
