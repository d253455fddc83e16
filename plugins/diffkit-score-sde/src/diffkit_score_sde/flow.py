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
    """The ODE with the marginals of the SDE, solved by scipy's solve_ivp with error control for each sample.

    d(x / r) / d angle = cos(angle) eps - sin(angle) x0, r = hypot(alpha, sigma): the paper's equation, with the angle
    as time, which exists on every curve and reaches alpha = 0. The solver stops at each level of the grid; one step is
    enough. The last step goes to sigma / alpha = `stop`, the lowest level of training, and returns Tweedie's x0 there.
    The number of evaluations depends on the data; the solver runs in float64 on the host, so each evaluation waits for
    the device. Raises DivergedError if the solver fails. Source: Song et al. 2021 (arXiv:2011.13456), eq. 13 and
    app. D.4.
    """

    method: Method = "RK45"
    rtol: Tolerance = 1e-5
    atol: Tolerance = 1e-5
    stop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    order = 5
    syncs = True
    law_exemptions = {"rotation": CONTROL, "shift": CONTROL}  # noqa: RUF012 - read only

    def nfe(self, n: int) -> None:
        """Return None, since the number of evaluations depends on the tolerance and the data."""

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
    """Compute dy / d angle of the probability flow for y = x / r, r = hypot(alpha, sigma).

    Args:
        denoise: the trained denoiser.
        y: (B, *S).
        angle: (B,), atan2(sigma, alpha) in radians.
        cond: condition tensors of the denoiser, each (B, ...); default none.

    Returns:
        The derivative, shaped as y.
    """
    return ANGLE.slope(denoise(y, Level(torch.cos(angle), torch.sin(angle)), **(cond or {})))


def to_rows(x: Tensor) -> Array:
    """Convert (B, *S) on any device to float64 (B, K) on the host."""
    rows: Array = x.detach().flatten(1).double().cpu().numpy()
    return rows


def to_batch(y: Array, like: Tensor) -> Tensor:
    """Invert `to_rows`: return the type, device and shape of `like`."""
    return torch.from_numpy(np.ascontiguousarray(y)).to(like).reshape(like.shape)
