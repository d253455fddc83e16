"""The maximum mean discrepancy between samples and training examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffkit.metric import Evaluation, Metric

from .pixels import Rows, counts, require_enough, subset

Positive = Annotated[float, Field(gt=0)]
Kernel = Callable[[Tensor], Tensor]
CHUNK = 1024  # rows at a time
MEDIAN_OF = 1000  # examples whose distances give the bandwidth


@dataclass(frozen=True)
class MMD(Metric):
    """The unbiased estimate of the squared maximum mean discrepancy, in pixels scaled to [0, 1].

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) over pairs of different examples; the estimate can be negative, and
    its expectation is 0 for equal distributions. `kernel: gaussian` is the mean over `bandwidths` b of
    exp(-d^2 / (2 (b h)^2)), h the median distance between training examples, so that all runs on one data set use the
    same kernel; `kernel: energy` is -d, which makes it the energy distance. At most `limit` examples of each side are
    used.
    Source: Gretton et al. 2012 (JMLR 13:723), eq. 3; energy: Sejdinovic et al. 2013 (arXiv:1207.6076), theorem 22.
    """

    kernel: Literal["gaussian", "energy"] = "gaussian"
    bandwidths: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    limit: Annotated[int, Field(ge=2)] = 5000
    resamples = 16
    definition = (
        "how much more similar samples are to samples, and training examples to each other, than samples to training "
        "examples: the unbiased squared maximum mean discrepancy (Gaussian kernels around "
        "the median distance of the training examples, or the energy kernel), in pixels scaled to 0..1; 0 is best"
    )

    law_reference = (
        ([[0.0], [1.0]], [[0.0], [1.0]], (math.exp(-2) + math.exp(-1 / 2) + math.exp(-1 / 8)) / 3 - 1),
        ([[3.0], [3.0]], [[0.0], [3.0]], 0.0),
    )
    """Known cases for points at the distance h: k(h) - 1, and 1 + k(h) - (1 + k(h))."""

    def __post_init__(self) -> None:
        if not self.bandwidths:
            raise ValueError("bandwidths is empty; give at least one multiple of the median distance")
        if self.kernel == "energy" and self.bandwidths != type(self).bandwidths:
            raise ValueError("kernel: energy has no bandwidths; leave them out")

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        generator = evaluation.generator("mmd")
        samples, train = require_enough(evaluation)
        kept = subset(len(samples), self.limit, generator)
        reference = train[subset(len(train), self.limit, generator)]
        kernel = self._kernel(reference)
        within, across = _mean_within(reference, kernel), _row_means(samples, reference, kernel)

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            rows = kept if len(rows) == len(samples) else rows[: self.limit]
            chosen = samples[rows]
            value = _mean_within(chosen, kernel) + within - 2 * float(across[rows].mean())
            return {"mmd": value, **counts(chosen, reference)}

        return of_rows

    def _kernel(self, reference: Tensor) -> Kernel:
        """Return the kernel as a function of squared distances."""
        if self.kernel == "energy":
            return lambda squares: -squares.sqrt()
        some = reference[:: max(1, len(reference) // MEDIAN_OF)]
        apart = torch.pdist(some)
        apart = apart[apart > 0]
        median = float(apart.median()) if len(apart) else 1.0
        return lambda squares: torch.stack(
            [torch.exp(squares / (-2 * (b * median) ** 2)) for b in self.bandwidths]
        ).mean(0)


def _mean_within(a: Tensor, kernel: Kernel) -> float:
    """Return the mean of the kernel over pairs of different rows of a: (N, D)."""
    n, zero = len(a), float(kernel(torch.zeros(1, dtype=torch.float64)))
    return (n * float(_row_means(a, a, kernel).sum()) - n * zero) / (n * (n - 1))


def _row_means(a: Rows, b: Tensor, kernel: Kernel) -> Tensor:
    """Return the mean of the kernel between each row of a: (N, D) and all rows of b: (M, D), as (N,)."""
    means = []
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        squares = squared_distances(rows, b)
        if a is b:
            squares[range(len(rows)), range(start, start + len(rows))] = 0.0
        means.append(kernel(squares).mean(1))
    return torch.cat(means)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute |a_i - b_j|^2: (N, M) for a: (N, D), b: (M, D) float64, exact to 1e-15 relative to |a|^2 + |b|^2."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    return torch.addmm(squares, a, b.T, alpha=-2).clamp_(min=0)
