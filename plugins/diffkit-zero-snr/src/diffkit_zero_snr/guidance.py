"""Rescaled guidance, which keeps the contrast of the estimate before guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, Parameterization, Shape, broadcast, build, weighted_sum


@dataclass(frozen=True)
class Rescale(Guidance):
    """Rescale the guided output of `inner` by phi std(before) / std(guided) + 1 - phi, std over an example.

    With a large scale near alpha = 0 guided samples are overexposed; phi = 0 changes nothing, the paper uses 0.7.
    eps follows from x. The estimate before guidance is the one that `inner` leaves in `Estimate.aux` (cfg does), so it
    costs no evaluation.

    phi   share of the rescaled estimate
    of    what is rescaled: `x0`, or the `output` of the network, as in the paper and in diffusers

    Raises ValueError for `output` without a parameterization.
    Source: Lin et al. 2024 (arXiv:2305.08891), eq. 15, 16. Differs: x0 by default, which is -v at alpha = 0.
    """

    inner: Guidance
    phi: Annotated[float, Field(ge=0, le=1)] = 0.7
    of: Literal["x0", "output"] = "x0"
    parameterization: Parameterization | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.of == "output" and self.parameterization is None:
            raise ValueError("rescale of the output requires the parameterization, which defines the output")

    @staticmethod
    def law_example(folder: Path) -> Rescale:
        """Return an instance on which the laws are tested."""
        cfg = build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=7.5)
        return Rescale(cfg, parameterization=build("parameterization", "eps"))

    def __call__(self, denoise: Denoiser) -> Denoiser:
        inner = self.inner(denoise)

        def rescaled(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            guided = inner(x, level, **cond)
            plain = guided.aux["unguided"] if "unguided" in guided.aux else denoise(x, level, **cond).x0
            before, after = (self._rescaled(one) for one in (guided.with_x0(plain), guided))
            b, a = (y.flatten(1).std(1, correction=0) for y in (before, after))
            ratio = torch.where(a > 0, b / torch.where(a > 0, a, 1.0), 1.0)
            factor = broadcast(self.phi * ratio + 1.0 - self.phi, x)
            return guided.with_x0(self._x0(factor * after, x, level))

        return rescaled if inner is not denoise else denoise

    def _rescaled(self, estimate: Estimate) -> Tensor:
        """Return x0 or the output of the network of an estimate."""
        if self.of == "x0" or self.parameterization is None:
            return estimate.x0
        return estimate.combine(*self.parameterization.coefficients(estimate.level))

    def _x0(self, y: Tensor, x: Tensor, level: Level) -> Tensor:
        """Return x0 of a rescaled value y, which is x0 or an output of the network."""
        if self.of == "x0" or self.parameterization is None:
            return y
        p, q, _, _ = (broadcast(value, x) for value in self.parameterization.inverse(level))
        return weighted_sum(p, x, q, y)
