"""Times: which noise levels training visits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import RandomStreams
from .schedule import Schedule

HALF_GAP = 2.0**-25
"""Half of the distance between two numbers of a float32 stream, which may be 0, where the quantile is -inf."""


class Times(ABC):
    """Implement `draw`. One that learns from the losses is an `nn.Module` too, with its memory in buffers."""

    @abstractmethod
    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Times of a whole global batch, from numbers in [0, 1); uniform, result: (B,).

        Whole numbers 1..T of an integer type on a discrete schedule, float64 in (t_clean, t_noise] on others.
        """

    def of_rows(self, noise: RandomStreams, x0: Tensor, schedule: Schedule) -> Tensor:
        """Times of the rows x0: (B, *S) of the batch that `noise` belongs to; (B,), on the device of x0."""
        return self.draw(noise.block("times", x0), schedule)[noise.start : noise.start + len(x0)]

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        """(B,) factors that make the loss that of uniform times; None where the law of t is meant as it is."""
        return None

    def update(self, t: Tensor, each: Tensor) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from the losses `each`: (B,) at times t: (B,) of a whole global batch; must not wait for the device."""


def at_fraction(fraction: Tensor, schedule: Schedule) -> Tensor:
    """The time at `fraction` u in [0, 1) of the schedule: floor(T u) + 1, or t_noise - (t_noise - t_clean) u."""
    if schedule.steps is not None:
        return (fraction.double() * schedule.steps).long().clamp(max=schedule.steps - 1) + 1
    return schedule.t_noise - (schedule.t_noise - schedule.t_clean) * fraction.double()


@dataclass(frozen=True)
class UniformTimes(Times):
    """t uniform over 1..T, or over (t_clean, t_noise]. Source: Ho et al. 2020 (arXiv:2006.11239), Algorithm 1."""

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        return at_fraction(uniform, schedule)


UNIFORM_TIMES = UniformTimes()


def normal_quantile(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in [0, 1): float64, finite at both ends."""
    return torch.special.ndtri(uniform.double().clamp(HALF_GAP, 1.0 - HALF_GAP))  # type: ignore[no-any-return]


def nearest_time(t: Tensor, schedule: Schedule) -> Tensor:
    """Any real times as ones that training may visit: whole numbers 1..T, or clamped to [t_clean, t_noise]."""
    if schedule.steps is not None:
        return t.round().long().clamp(1, schedule.steps)
    return torch.clamp(t, schedule.t_clean, schedule.t_noise)
