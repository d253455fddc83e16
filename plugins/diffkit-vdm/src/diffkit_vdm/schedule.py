"""The learned noise schedule."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import Level, Scalar, Schedule, scalar

SPEED = 10.0
"""Factor of the trained numbers: an optimizer changes each by roughly its learning rate in a step."""


class LearnedVP(nn.Module, Schedule):
    """A learned schedule, variance preserving: gamma = log(sigma^2 / alpha^2) rises with t between two learned ends.

    [gamma_min, gamma_max] is divided into `parts` equal parts, each with a learned share of the time [0, 1]; gamma is
    linear in t within a part. `gamma_min` and `gamma_max` are the initial ends; the initial shares are equal. The
    network receives 1000 (gamma - gamma_min) / (gamma_max - gamma_min) with the initial ends, so that what it has
    learned about a level stays valid while the schedule changes. Levels have gradients to the ends only: the bound
    does not depend on the shares, which `variance_loss` trains. Raises ValueError unless gamma_min < gamma_max.
    Source: Kingma et al. 2021 (arXiv:2107.00630), sec. 3.2, app. D and H.
    Differs: a curve of straight parts, with its inverse in closed form, in place of a monotone network; the logarithm
    of the second moment of the loss in place of the second moment, so that the size of the loss does not matter.
    """

    law_options = ({"gamma_min": -6.0, "gamma_max": 3.0, "parts": 1},)

    def __init__(
        self, gamma_min: float = -13.3, gamma_max: float = 5.0, parts: Annotated[int, Field(ge=1, le=1000)] = 20
    ) -> None:
        super().__init__()
        if not gamma_min < gamma_max:
            raise ValueError(f"gamma_min is {gamma_min:g}, which is not below gamma_max, {gamma_max:g}")
        self.gamma_min, self.gamma_max = gamma_min, gamma_max
        self.ends = nn.Parameter(torch.zeros(2))
        self.shares = nn.Parameter(torch.zeros(parts))

    def level(self, t: Scalar) -> Level:
        gamma = self.gamma(t)
        return Level(*(scalar.sqrt(1.0 / (1.0 + scalar.exp(g))) for g in (gamma, -gamma)))

    def time(self, level: Level) -> Scalar:
        low, high = self.learned_ends()
        place = (-2.0 * torch.as_tensor(level.half_logsnr, dtype=torch.float64, device=low.device) - low) / (high - low)
        t = interpolate(place, *reversed(self.curve())).clamp(0.0, 1.0)
        return t if isinstance(level.alpha, Tensor) else float(t.detach())

    def index(self, t: Scalar) -> Scalar:
        """Return 1000 (gamma(t) - gamma_min) / (gamma_max - gamma_min), which depends on the level alone."""
        return 1000.0 * (self.gamma(t) - self.gamma_min) / (self.gamma_max - self.gamma_min)

    def gamma(self, t: Scalar) -> Scalar:
        """Return gamma at time t: a float, or a tensor (B,), float64."""
        low, high = self.learned_ends()
        gamma = low + (high - low) * interpolate(
            torch.as_tensor(t, dtype=torch.float64, device=low.device), *self.curve()
        )
        return gamma if isinstance(t, Tensor) else float(gamma.detach())

    def learned_ends(self) -> tuple[Tensor, Tensor]:
        """Return gamma at t = 0 and t = 1: () each, float64."""
        low, high = SPEED * self.ends.double()
        return self.gamma_min + low, self.gamma_max + high

    def curve(self) -> tuple[Tensor, Tensor]:
        """Return the times at which the curve bends, and (gamma - gamma_min) / (gamma_max - gamma_min) there, without
        gradient: (parts + 1,) each.
        """
        shares = torch.softmax(SPEED * self.shares.detach().double(), 0)
        times = torch.cat([shares.new_zeros(1), shares.cumsum(0)])
        return times / times[-1], torch.linspace(0.0, 1.0, len(times), dtype=times.dtype, device=times.device)


def variance_loss(schedule: LearnedVP, t: Tensor, loss: Tensor) -> Tensor:
    """Compute a number whose gradient is that of log E[loss^2] with respect to the shares of a schedule.

    The loss at time t is m(gamma) gamma'(t), so that E[loss^2] = int m^2 gamma' d gamma, and gamma' is the length
    of a part divided by its share.

    Args:
        schedule: The schedule.
        t: Times: (B,).
        loss: The losses at these times: (B,).

    Returns:
        The mean of -log(share) over the times, weighted by loss^2: (). The weights sum to 1 over these rows, also if
        they are a part of a batch.
    """
    inner_times = schedule.curve()[0][1:-1].contiguous()
    log_share = torch.log_softmax(SPEED * schedule.shares.double(), 0)[torch.searchsorted(inner_times, t)]
    weight = loss.detach().double() ** 2
    return -(weight * log_share).sum() / weight.sum()


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate linearly between points, and beyond the first and the last one.

    Args:
        x: Any shape.
        xs: Rising places: (K,).
        ys: The value at each place: (K,).

    Returns:
        The values at x, in the shape of x.
    """
    part = torch.searchsorted(xs[1:-1].contiguous(), x.detach().contiguous())
    return ys[part] + (x - xs[part]) * (ys[part + 1] - ys[part]) / (xs[part + 1] - xs[part])
