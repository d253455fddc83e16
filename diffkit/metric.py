"""Metrics: numbers that measure the distance between samples and data.

A metric receives an `Evaluation` and returns named floats. It is applied twice: to the samples, and to real held-out
data in their place, so that a report can show the score of a perfect model beside each number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
    held_out   real examples that were not trained on
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

    def with_samples(self, samples: Tensor, labels: Tensor | None) -> Evaluation:
        """Return the same evaluation of other samples: (N, C, *S), and their labels (N,) or None."""
        return replace(self, samples=samples, sample_labels=labels)


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

    @attribute
    def resamples(self) -> int:
        """Number of random halves of the samples for confidence intervals; 0 for a slow metric. Default 40."""
        return 40

    @attribute
    def limits(self) -> tuple[float, float, float] | None:
        """The largest values of the headline that count as on par with, close to, and apart from real data.

        Default None: the metric is graded by its ratio to the value of real held-out data.
        """
        return None

    def protocol(self, evaluation: Evaluation) -> Mapping[str, str]:
        """Return what else the values depend on, by name, for the record: `compare` refuses results that differ in it.

        Default: nothing, for a metric that its `definition` describes completely.
        """
        return {}

    @abstractmethod
    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return named values, the headline first."""

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        """Return the metric as a function of the rows (M,) of the samples that it uses.

        Override it to compute once what does not depend on the rows: confidence intervals call the function
        `resamples` times.
        """

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            labels = None if evaluation.sample_labels is None else evaluation.sample_labels[rows]
            return self(evaluation.with_samples(evaluation.samples[rows], labels))

        return of_rows
