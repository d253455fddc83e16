"""Objectives: what training minimises. An objective is a law of times, a weighting, and a distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .denoiser import Model
from .level import Level
from .noise import RandomStreams
from .parameterization import Parameterization
from .scalar import Scalar


@dataclass(frozen=True, slots=True)
class Loss:
    """`mean` is what is differentiated; `each`: (B,) the loss of every example at its time `t`: (B,), without
    importance correction; `parts` are further means for the log, all detached."""

    mean: Tensor
    each: Tensor
    t: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, each: Tensor, t: Tensor, correction: Tensor | None = None, parts: Mapping[str, Tensor] | None = None
    ) -> Loss:
        """The loss of examples of which each counts `correction` times; all (B,)."""
        mean = (each if correction is None else each * correction.to(each.dtype)).mean()
        return cls(mean, each.detach(), t, {name: part.detach() for name, part in (parts or {}).items()})


class Objective(ABC):
    """Implement `__call__`."""

    @abstractmethod
    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        """The loss of a batch x0: (B, C, *S); `ema` is the averaged model, for objectives that learn from it."""

    def update(self, t: Tensor, each: Tensor) -> None:  # noqa: B027 - most have nothing to learn
        """Told after each step the times and losses of the whole global batch, (B,) each."""


class Weighting(ABC):
    """w(level) on |x0 - x0_hat|^2, whatever the network predicts."""

    @abstractmethod
    def __call__(self, level: Level) -> Scalar:
        """level of (B,) -> weights (B,)."""

    def on_output(self, level: Level, parameterization: Parameterization) -> Scalar:
        """The same weight on |y - target|^2: w(level) / weight(level), nothing being lost near the ends."""
        return self(level) / parameterization.weight(level)
