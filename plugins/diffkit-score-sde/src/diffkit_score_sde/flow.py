"""The probability-flow ODE, solved to a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from scipy.integrate import DOP853
from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler
from diffkit.likelihood import TABLEAUS, Adaptive, Tableau, flow_slope, solve, wide

Tolerance = Annotated[float, Field(gt=0, lt=1)]
Method = Literal["RK45", "RK23", "DOP853"]
METHODS = {
    "RK45": TABLEAUS["rk45"],
    "RK23": TABLEAUS["rk23"],
    "DOP853": Tableau(
        "dop853",
        [row[:stage].tolist() for stage, row in enumerate(DOP853.A) if stage],
        DOP853.B.tolist(),
        DOP853.C.tolist(),
        [DOP853.E5.tolist(), DOP853.E3.tolist()],
        order=7,
    ),
}
CONTROL = "the error is controlled in each coordinate, so results agree within the tolerance only"


@dataclass(frozen=True)
class ProbabilityFlow(Sampler[None]):
    """The ODE with the marginals of the SDE, solved with error control for each sample.

    d(x / r) / d angle = cos(angle) eps - sin(angle) x0, r = hypot(alpha, sigma): the paper's equation, with the angle
    as time, which exists on every curve and reaches alpha = 0. The solver stops at each level of the grid; one step is
    enough. The last step goes to sigma / alpha = `stop`, the lowest level of training, and returns Tweedie's x0 there.
    The number of evaluations depends on the data; the state is float64, and each step waits for the device. Raises
    DivergedError if the solver fails. Source: Song et al. 2021 (arXiv:2011.13456), eq. 13 and app. D.4.
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
        def field(angle: Tensor, rows: Tensor) -> Tensor:
            return flow_slope(denoise, rows.to(x.dtype).reshape(x.shape), angle).flatten(1).to(rows.dtype)

        solver = Adaptive(self.rtol, self.atol, METHODS[self.method])
        rows = wide(x).flatten(1) / float(t.scale)
        y = solve(field, rows, float(t.angle), float(s.angle), solver)
        return (float(s.scale) * y).to(x.dtype).reshape(x.shape)
