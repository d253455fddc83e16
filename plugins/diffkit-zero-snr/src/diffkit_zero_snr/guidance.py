"""Rescaled guidance, which keeps the contrast of the estimate before guidance."""

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
    """Rescale the guided x0 of `inner` by phi std(x0 before) / std(x0 guided) + 1 - phi, std over an example.

    With a large scale near alpha = 0 guided samples are overexposed; phi = 0 changes nothing, the paper uses 0.7.
    eps follows from x. The estimate before guidance is reused from the call of `inner` (cfg evaluates the labelled
    estimate), so it costs no evaluation. Source: Lin et al. 2024 (arXiv:2305.08891), eq. 15, 16.
    Differs: the paper rescales the output v of the network, which is -x0 at alpha = 0.
    """

    inner: Guidance
    phi: Annotated[float, Field(ge=0, le=1)] = 0.7

    @property
    def needs_null(self) -> bool:
        return self.inner.needs_null

    @staticmethod
    def law_example(folder: Path) -> Rescale:
        """Return an instance on which the laws are tested."""
        return Rescale(build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=7.5))

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def rescaled(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            recorded: list[Estimate] = []

            def record(z: Tensor, at: Level, /, **given: Tensor) -> Estimate:
                estimate = denoise(z, at, **given)
                if z is x and at is level and given.keys() == cond.keys() and all(given[k] is cond[k] for k in cond):
                    recorded.append(estimate)
                return estimate

            guided = self.inner(record)(x, level, **cond)
            plain = recorded[0] if recorded else denoise(x, level, **cond)
            before, after = (e.x0.flatten(1).std(1, correction=0) for e in (plain, guided))
            ratio = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0)
            factor = (self.phi * ratio + 1.0 - self.phi).reshape(-1, *(1,) * (x.ndim - 1))
            return guided.with_x0(factor * guided.x0)

        return rescaled
