"""The exact denoiser of the data in the place of a trained network."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.data import Data
from diffkit.level import Level, broadcast
from diffkit.network import Network
from diffkit.parameterization import Parameterization
from diffkit.scalar import Scalar
from diffkit.schedule import Schedule

BISECTIONS = 60


class OracleNetwork(Network):
    """What a perfectly trained network says: the target at x0* = E[x0 | x] and eps* = E[eps | x].

    It needs data whose `truth()` is known (gaussian, mixture), has no parameters and needs no training, so that a
    recipe shows what its sampler, grid and guidance do alone. The level is read back from c_noise, hence exact on
    whole times and else to the rounding of a float32. Raises ValueError where the data knows no truth.
    """

    def __init__(self, data: Data, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        truth = data.truth()
        if truth is None:
            raise ValueError("network oracle needs data whose law is known in closed form: use gaussian or mixture")
        self.truth, self.schedule, self.parameterization = truth, schedule, parameterization

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x: (B, C, *S) as the network sees it, c_noise: (B,), label: (B,) -> (B, C', *S)."""
        level = self._level(c_noise.double())
        x = x / broadcast(self.parameterization.c_in(level), x)
        estimate = self.truth(x, level) if label is None else self.truth(x, level, label=label)
        return ideal_output(self.parameterization, estimate.x0, estimate.eps, level)

    def _level(self, c_noise: Tensor) -> Level:
        return self.schedule.level(self._time(c_noise))

    def _time(self, c_noise: Tensor) -> Tensor:
        """The time that c_noise tells: by the straight line between the ends where it is one, else by bisection."""
        low, high = self.schedule.t_clean, self.schedule.t_noise
        if self.parameterization.c_noise(self.schedule.noise) is None:
            first, last = float(self.schedule.index(low)), float(self.schedule.index(high))
            t = (low + (c_noise - first) / (last - first) * (high - low)).clamp(low, high)
            if torch.allclose(torch.as_tensor(self.schedule.index(t)).double(), c_noise, rtol=1e-6, atol=1e-6):
                return self._snap(t)
        lower, upper = torch.full_like(c_noise, low), torch.full_like(c_noise, high)
        middle = torch.full_like(c_noise, 0.5 * (low + high))
        rises = self._told(torch.full_like(c_noise[:1], high)) > self._told(middle[:1])
        for _ in range(BISECTIONS):
            middle = 0.5 * (lower + upper)
            beyond = (self._told(middle) > c_noise) == rises
            lower, upper = torch.where(beyond, lower, middle), torch.where(beyond, middle, upper)
        return self._snap(0.5 * (lower + upper))

    def _told(self, t: Tensor) -> Tensor:
        told: Scalar | None = self.parameterization.c_noise(self.schedule.level(t))
        return torch.as_tensor(self.schedule.index(t) if told is None else told).double()

    def _snap(self, t: Tensor) -> Tensor:
        if self.schedule.steps is None:
            return t
        whole = t.round()
        return torch.where((t - whole).abs() <= 1e-3, whole, t)


def ideal_output(
    parameterization: Parameterization, x0: Tensor, eps: Tensor, level: Level, fill: float = 0.0
) -> Tensor:
    """The output that means (x0, eps): (B, C, *S) -> (B, C', *S); channels beyond C hold `fill`."""
    y = parameterization.target(x0, eps, level)
    more = parameterization.out_channels(x0.shape[1]) - y.shape[1]
    if more <= 0:
        return y
    return torch.cat([y, torch.full_like(y[:, :1], fill).expand(-1, more, *y.shape[2:])], 1)
