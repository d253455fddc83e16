"""Adaptive projected guidance: a guidance whose change along the estimate itself is reduced."""

from __future__ import annotations

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

    inner    the guidance, such as cfg
    eta      share of the change along x0 that remains; 1: all
    radius   largest norm of the change of an example, before it is projected; None: no limit

    Source: Sadat et al. 2025 (arXiv:2410.02416), Algorithm 1.
    Differs: no momentum; the radius limits the whole change, which is (w - 1) times the paper's difference.
    """

    inner: Guidance
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    radius: Annotated[float, Field(gt=0)] | None = None

    @property
    def needs_null(self) -> bool:
        return self.inner.needs_null

    @staticmethod
    def law_example(folder: Path) -> APG:
        """Return an instance on which the laws are tested."""
        return APG(build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=3.0), eta=0.3, radius=1.0)

    def __call__(self, denoise: Denoiser) -> Denoiser:
        inner = self.inner(denoise)

        def projected(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            guided = inner(x, level, **cond)
            plain = guided.aux["unguided"] if "unguided" in guided.aux else denoise(x, level, **cond).x0
            change = guided.x0 - plain
            if self.radius is not None:
                size = change.flatten(1).norm(dim=1)
                change = change * broadcast((self.radius / size.clamp(min=1e-30)).clamp(max=1.0), x)
            dot, square = ((one * plain).flatten(1).sum(1) for one in (change, plain))
            share = torch.where(square > 0, dot / torch.where(square > 0, square, 1.0), 0.0)
            along = broadcast(share, x) * plain
            return guided.with_x0(plain + change - (1.0 - self.eta) * along)

        return projected if inner is not denoise else denoise
