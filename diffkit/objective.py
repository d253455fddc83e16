"""Objectives: the loss that training minimises, made from a distribution of times, a weighting and a distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .denoiser import Model
from .interface import attribute
from .level import Level
from .noise import RandomStreams
from .parameterization import Parameterization
from .scalar import Scalar


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a batch of B examples.

    mean    scalar to differentiate
    each    (B,) detached loss per example, without importance correction
    t       (B,) time per example
    parts   further detached scalars to log, by name
    out     what else the critics of a task learn from; None for an objective
    """

    mean: Tensor
    each: Tensor
    t: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    out: object = None

    @classmethod
    def of(
        cls, each: Tensor, t: Tensor, correction: Tensor | None = None, parts: Mapping[str, Tensor] | None = None
    ) -> Loss:
        """Make the loss of a batch from the losses of its examples.

        Args:
            each: Loss per example: (B,).
            t: Time per example: (B,).
            correction: Weight per example in the mean: (B,); 1 by default.
            parts: Further scalars to log, by name.

        Returns:
            The loss, with everything but `mean` detached.
        """
        mean = (each if correction is None else each * correction.to(each.dtype)).mean()
        return cls(mean, each.detach(), t, {name: part.detach() for name, part in (parts or {}).items()})


class Objective(ABC):
    """Base of objectives. Implement `__call__`."""

    @attribute
    def discrete_only(self) -> bool:
        """Whether the objective is defined on discrete schedules only; default False."""
        return False

    @attribute
    def needs(self) -> tuple[str, ...]:
        """Entries of `Estimate.aux` that the parameterization must provide; default none."""
        return ()

    @attribute
    def trains_schedule(self) -> bool:
        """Whether a schedule may be trained too: the loss is a bound, so it does not fall because levels become easier;
        default False.
        """
        return False

    @attribute
    def consistency(self) -> bool:
        """Whether it trains a consistency function: x0 is the end of the probability-flow path; default False."""
        return False

    @abstractmethod
    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        """Compute the loss of a batch.

        Args:
            model: The model to train.
            x0: Clean examples: (B, C, *S).
            noise: Random numbers of these examples; each stream can be drawn once.
            ema: The averaged model, for objectives that learn from it.
            **cond: Conditions, one row per example.

        Returns:
            The loss.
        """

    def update(self, t: Tensor, each: Tensor) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from the times and losses of the whole global batch, (B,) each, after each step.

        Does nothing by default.
        """


class Weighting(ABC):
    """Base of weightings w(level) of |x0 - x0_hat|^2, whatever the network predicts. Implement `__call__`."""

    @abstractmethod
    def __call__(self, level: Level) -> Scalar:
        """Return the weights (B,) at a level of tensors (B,)."""

    def on_output(self, level: Level, parameterization: Parameterization) -> Scalar:
        """Return the equivalent weight of |y - target|^2: w(level) / parameterization.weight(level)."""
        return self(level) / parameterization.weight(level)
