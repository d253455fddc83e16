"""Metrics: numbers that measure the distance between samples and data.

A metric receives an `Evaluation` and returns named floats. It is applied twice: to the samples, and to real held-out
data in their place, so that a report can show the score of a perfect model beside each number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import DataSpec
from .interface import attribute
from .noise import generator


@dataclass(frozen=True)
class Evaluation:
    """The data that metrics compare, in the range of the model: (N, C, *S) float32 on the CPU; labels (N,) long.

    spec       the spec of the data
    samples    the samples to judge
    train      real examples to compare them with
    held_out   real examples that training never saw
    seed       seed of random projections and splits; see `generator`
    """

    spec: DataSpec
    samples: Tensor
    train: Tensor
    held_out: Tensor
    sample_labels: Tensor | None = None
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    seed: int = 0

    def generator(self, stream: str) -> torch.Generator:
        """Return a CPU generator for the random numbers of a metric; `stream` names what they are used for."""
        return generator("cpu", self.seed, "metric", stream)


class Metric(ABC):
    """Base of metrics. Implement `__call__`."""

    @attribute
    def definition(self) -> str:
        """The sentence that reports print under the number."""
        return ""

    @attribute
    def lower_is_better(self) -> bool | None:
        """Whether lower values are better; None if the score of real held-out data is best. Default True."""
        return True

    @abstractmethod
    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return named values, the headline first."""
