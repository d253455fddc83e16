"""Optimizers and learning-rate schedules: the update of the weights from the gradient.

An `Optimizer` builds a `torch.optim.Optimizer` for named parameters; its parameter groups carry the learning rates at
factor 1. An `LRSchedule` is the factor on these rates, warm-up included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

NamedParameters = Sequence[tuple[str, nn.Parameter]]


class Optimizer(ABC):
    """Builds the optimizer of a training.

    Its state is saved as one tensor for each parameter and key of `torch.optim.Optimizer.state`, plain numbers beside
    them; a training that is resumed continues bit for bit if the optimizer keeps everything there.
    """

    @abstractmethod
    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        """Return a new optimizer of these parameters; its state is on their device.

        Names are those of the network, such as `blocks.0.weight`; parameters of other components have a name that
        starts with a slash. Every group has a learning rate `lr`.
        """


class LRSchedule(ABC):
    """A factor on the learning rate of every parameter group."""

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """Return the factor of the update that follows `step` of `steps` updates: finite and at least 0."""
