"""Metrics: numbers that say how far samples are from data.

A metric sees an `Evaluation` and returns named floats. It is applied twice: to the samples, and to real held-out
data in their place, so that a report can show beside each number what a perfect model would score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .data import DataSpec


@dataclass(frozen=True)
class Evaluation:
    """What metrics compare. All x are decoded, (N, C, *S) float32 on the CPU; labels (N,) long or None.

    `samples` are held against `train`; `held_out` are real examples that training never saw.
    `seed` feeds whatever random projections or splits the metric draws.
    """

    spec: DataSpec
    samples: Tensor
    train: Tensor
    held_out: Tensor
    sample_labels: Tensor | None = None
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    seed: int = 0


class Metric(ABC):
    """Implement `__call__`. `definition` is the sentence that reports print under the number.

    `lower_is_better` is None where neither is: what real held-out data scores is best.
    """

    definition: str = ""
    lower_is_better: bool | None = True

    @abstractmethod
    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Named values; the first one is the headline."""
