"""Times: the distribution of noise levels that training uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import RandomStreams
from .schedule import Schedule

HALF_GAP = 2.0**-25
"""Half of the gap between neighbouring float32 numbers of a stream, whose smallest number is 0 (quantile -inf)."""


class Times(ABC):
    """Base of distributions of training times. Implement `draw`.

    A distribution that learns from the losses is an `nn.Module` as well and keeps its state in buffers.
    """

    @abstractmethod
    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Convert uniform numbers of a whole global batch to times.

        Args:
            uniform: Numbers in [0, 1): (B,).
            schedule: The schedule of the model.

        Returns:
            (B,): integers 1..T on a discrete schedule, float64 in (t_clean, t_noise] on others.
        """

    def of_rows(self, noise: RandomStreams, x0: Tensor, schedule: Schedule) -> Tensor:
        """Draw the times of the rows x0 from the stream "times" of the global batch.

        Args:
            noise: The random numbers of these rows.
            x0: The examples: (B, *S).
            schedule: The schedule of the model.

        Returns:
            Times: (B,), on the device of x0.
        """
        return self.draw(noise.batch_uniform("times", x0), schedule)[noise.start : noise.start + len(x0)]

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        """Return (B,) factors that make the mean loss that of uniform times; None (default) for no correction."""
        return None

    def update(self, t: Tensor, each: Tensor) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from the losses `each`: (B,) at times t: (B,) of a whole global batch, without waiting for the device.

        Does nothing by default.
        """


def at_fraction(fraction: Tensor, schedule: Schedule) -> Tensor:
    """Return the time at fraction u in [0, 1) of the schedule: floor(T u) + 1, or t_noise - (t_noise - t_clean) u."""
    if schedule.steps is not None:
        return (fraction.double() * schedule.steps).long().clamp(max=schedule.steps - 1) + 1
    return schedule.t_noise - (schedule.t_noise - schedule.t_clean) * fraction.double()


@dataclass(frozen=True)
class UniformTimes(Times):
    """t uniform over 1..T, or over (t_clean, t_noise]. Source: Ho et al. 2020 (arXiv:2006.11239), Algorithm 1."""

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        return at_fraction(uniform, schedule)


UNIFORM_TIMES = UniformTimes()
"""The default of objectives."""


def normal_quantile(uniform: Tensor) -> Tensor:
    """Convert uniform numbers in [0, 1) to standard normal numbers: float64, finite at both ends."""
    quantile: Tensor = torch.special.ndtri(uniform.double().clamp(HALF_GAP, 1.0 - HALF_GAP))
    return quantile


def nearest_time(t: Tensor, schedule: Schedule) -> Tensor:
    """Return the nearest times that training may visit: integers 1..T, or t clamped to [t_clean, t_noise]."""
    if schedule.steps is not None:
        return t.round().long().clamp(1, schedule.steps)
    return torch.clamp(t, schedule.t_clean, schedule.t_noise)
