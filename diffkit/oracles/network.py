"""Networks that compute from the level of x, among them the exact denoiser of the data."""

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


class LevelNetwork(Network):
    """Base of networks that compute from the noisy data and its level, which `unscaled` recovers.

    Args:
        schedule: The schedule of the training.
        parameterization: The meaning of the output.
    """

    def __init__(self, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.schedule, self.parameterization = schedule, parameterization

    def unscaled(self, x: Tensor, c_noise: Tensor) -> tuple[Tensor, Level]:
        """Return the noisy data that the scaled x: (B, C, *S) stands for, and its level: (B,) float64."""
        level = self._level(c_noise.double())
        return x / broadcast(self.parameterization.c_in(level), x), level

    def _level(self, c_noise: Tensor) -> Level:
        return self.schedule.level(self._time(c_noise))

    def _time(self, c_noise: Tensor) -> Tensor:
        """Invert c_noise: by a line through the ends of the schedule if c_noise is linear in t, else by bisection."""
        low, high = self.schedule.t_clean, self.schedule.t_noise
        if self.parameterization.c_noise(self.schedule.noise) is None:
            first, last = float(self.schedule.index(low)), float(self.schedule.index(high))
            t = (low + (c_noise - first) / (last - first) * (high - low)).clamp(low, high)
            if torch.allclose(torch.as_tensor(self.schedule.index(t)).double(), c_noise, rtol=1e-6, atol=1e-6):
                return self._snap(t)
        lower, upper = torch.full_like(c_noise, low), torch.full_like(c_noise, high)
        middle = torch.full_like(c_noise, 0.5 * (low + high))
        rises = self._c_noise(torch.full_like(c_noise[:1], high)) > self._c_noise(middle[:1])
        for _ in range(BISECTIONS):
            middle = 0.5 * (lower + upper)
            beyond = (self._c_noise(middle) > c_noise) == rises
            lower, upper = torch.where(beyond, lower, middle), torch.where(beyond, middle, upper)
        return self._snap(0.5 * (lower + upper))

    def _c_noise(self, t: Tensor) -> Tensor:
        c_noise: Scalar | None = self.parameterization.c_noise(self.schedule.level(t))
        return torch.as_tensor(self.schedule.index(t) if c_noise is None else c_noise).double()

    def _snap(self, t: Tensor) -> Tensor:
        if self.schedule.steps is None:
            return t
        whole = t.round()
        return torch.where((t - whole).abs() <= 1e-3, whole, t)


class OracleNetwork(LevelNetwork):
    """A network with the output of a perfectly trained one: the target at x0* = E[x0 | x] and eps* = E[eps | x].

    It has no parameters and needs no training, so that a recipe shows the errors of sampler, grid and guidance alone.
    The level is computed from c_noise, so it is exact at integer times and otherwise rounded to float32. Raises
    ValueError if `data.truth()` is None; gaussian and mixture have a closed form.
    """

    def __init__(self, data: Data, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__(schedule, parameterization)
        truth = data.truth()
        if truth is None:
            raise ValueError("network oracle requires data with a distribution in closed form: use gaussian or mixture")
        self.truth = truth

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the exact output.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; none by default.

        Returns:
            The output: (B, C', *S).
        """
        x, level = self.unscaled(x, c_noise)
        estimate = self.truth(x, level) if label is None else self.truth(x, level, label=label)
        return ideal_output(self.parameterization, estimate.x0, estimate.eps, level)


def ideal_output(
    parameterization: Parameterization, x0: Tensor, eps: Tensor, level: Level, fill: float = 0.0
) -> Tensor:
    """Compute the output that decodes to (x0, eps).

    Args:
        parameterization: The meaning of the output.
        x0: (B, C, *S).
        eps: (B, C, *S).
        level: The level of x.
        fill: Value of the channels beyond C; default 0.

    Returns:
        The output: (B, C', *S).
    """
    y = parameterization.target(x0, eps, level)
    more = parameterization.out_channels(x0.shape[1]) - y.shape[1]
    if more <= 0:
        return y
    return torch.cat([y, torch.full_like(y[:, :1], fill).expand(-1, more, *y.shape[2:])], 1)
