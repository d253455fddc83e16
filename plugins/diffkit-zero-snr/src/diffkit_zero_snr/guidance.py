"""Guidance that keeps the contrast of what is not guided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, Shape, build


@dataclass(frozen=True)
class Rescale(Guidance):
    """x0 guided by `inner`, times phi std(x0 before) / std(x0 guided) + 1 - phi, the deviations those of the example.

    With a large scale near alpha = 0 guided samples are overexposed; phi = 0 changes nothing, the paper uses 0.7.
    eps follows from x. The estimate before is the one that `inner` asked for (cfg asks for the labelled one), so it
    costs no evaluation. Source: Lin et al. 2024 (arXiv:2305.08891), eq. 15, 16.
    Differs: there the output v of the network is rescaled, which at alpha = 0 is -x0.
    """

    inner: Guidance
    phi: Annotated[float, Field(ge=0, le=1)] = 0.7

    @property
    def needs_null(self) -> bool:
        return self.inner.needs_null

    @staticmethod
    def law_example(folder: Path) -> Rescale:
        """What the laws are applied to."""
        return Rescale(build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=7.5))

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def rescaled(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            heard: list[Estimate] = []

            def listening(z: Tensor, at: Level, /, **asked: Tensor) -> Estimate:
                estimate = denoise(z, at, **asked)
                if z is x and at is level and asked.keys() == cond.keys() and all(asked[k] is cond[k] for k in cond):
                    heard.append(estimate)
                return estimate

            guided = self.inner(listening)(x, level, **cond)
            plain = heard[0] if heard else denoise(x, level, **cond)
            before, after = (e.x0.flatten(1).std(1, correction=0) for e in (plain, guided))
            ratio = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0)
            factor = (self.phi * ratio + 1.0 - self.phi).reshape(-1, *(1,) * (x.ndim - 1))
            return guided.with_x0(factor * guided.x0)

        return rescaled
