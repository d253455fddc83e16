"""The probability-flow ODE, solved to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffkit import ANGLE, Denoiser, Level, Noise, Sampler

from .solver import Array, Method, solve

Tolerance = Annotated[float, Field(gt=0, lt=1)]
CONTROL = "the error is controlled in each coordinate, so results agree within the tolerance only"


@dataclass(frozen=True)
class ProbabilityFlow(Sampler[None]):
    """The ODE that has the marginals of the SDE, by scipy's solve_ivp with error control for each sample alone.

    d(x / r) / d angle = cos(angle) eps - sin(angle) x0, r = hypot(alpha, sigma), which is the paper's equation in a
    time that every curve has and that reaches alpha = 0. The levels are where it must stop; one step is enough. The
    last one goes to sigma / alpha = `stop`, the end of what networks are trained on, and takes Tweedie's x0 there.
    Evaluations depend on the data, in float64 on the host, so each waits for the device. Raises DivergedError where
    the solver gives up. Source: Song et al. 2021 (arXiv:2011.13456), eq. 13 and app. D.4.
    """

    method: Method = "RK45"
    rtol: Tolerance = 1e-5
    atol: Tolerance = 1e-5
    stop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    order = 5
    syncs = True
    law_exemptions = {"rotation": CONTROL, "shift": CONTROL}  # noqa: RUF012 - read only

    def nfe(self, n: int) -> None:
        """As many as the tolerance asks for."""

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        if not s.is_clean:
            return self._solved(denoise, x, t, s), None
        angle = math.atan(self.stop)
        last = Level(math.cos(angle), math.sin(angle))
        if float(t.angle) > angle:
            x, t = self._solved(denoise, x, t, last), last
        return denoise(x, t).step_to(s), None

    def _solved(self, denoise: Denoiser, x: Tensor, t: Level, s: Level) -> Tensor:
        def field(angle: Array, y: Array) -> Array:
            return to_rows(slope(denoise, to_batch(y, x), torch.as_tensor(angle, device=x.device)))

        ends = float(t.angle), float(s.angle)
        y = solve(field, to_rows(x) / float(t.scale), *ends, method=self.method, rtol=self.rtol, atol=self.atol)
        return to_batch(float(s.scale) * y, x)


def slope(denoise: Denoiser, y: Tensor, angle: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
    """d y / d angle of y = x / r: (B, *S) at angle: (B,)."""
    return ANGLE.slope(denoise(y, Level(torch.cos(angle), torch.sin(angle)), **(cond or {})))


def to_rows(x: Tensor) -> Array:
    """(B, *S) on any device as float64 (B, K) on the host."""
    rows: Array = x.detach().flatten(1).double().cpu().numpy()
    return rows


def to_batch(y: Array, like: Tensor) -> Tensor:
    """The inverse of `to_rows`, in the type and on the device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(y)).to(like).reshape(like.shape)
