"""The sliced Wasserstein distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit.metric import Evaluation, Metric

from .pixels import compared, counts

CHUNK = 64  # projections at a time


@dataclass(frozen=True)
class SlicedWasserstein(Metric):
    """The sliced Wasserstein distance between samples and training examples, in pixels scaled to [0, 1].

    See `sliced_wasserstein`; the directions depend on the seed of the evaluation.
    Source: Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3, def. 2.
    """

    projections: Annotated[int, Field(ge=1)] = 512
    p: Annotated[float, Field(ge=1)] = 2.0
    definition = (
        "distance by which the samples must be moved to become training examples, seen along random directions: "
        "(mean over directions of W_p^p between the projections)^(1/p), p = 2 and 512 directions unless set, "
        "in pixels scaled to 0..1 (vectors: as they are); 0 is best"
    )

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        samples, reference = compared(evaluation, least=1)
        generator = evaluation.generator("sliced-wasserstein")
        axes = torch.randn(samples.shape[1], self.projections, generator=generator, dtype=torch.float64)
        axes /= axes.norm(dim=0)
        projected, target = samples @ axes, (reference @ axes).sort(dim=0).values

        blocks: dict[int, tuple[Tensor, Tensor]] = {}

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            chosen = projected[rows].sort(dim=0).values
            if self.p == 2:
                if len(rows) not in blocks:
                    blocks[len(rows)] = block_moments(target, len(rows))
                means, variances = blocks[len(rows)]
                distance = float((variances + (chosen - means).square().mean(0)).mean().sqrt())
            else:
                distance = sorted_wasserstein(chosen, target, self.p)
            return {"sliced_wasserstein": distance, **counts(chosen, reference)}

        return of_rows


def block_moments(b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Compute moments of the quantile functions of the columns of b in n equal parts of [0, 1].

    For sorted a: (n, K), W_2^2(a_k, b_k) is the mean of (a_k - means_k)^2 plus variances_k, so that b is read once for
    all sets of n rows.

    Args:
        b: (M, K), each column in ascending order.
        n: Number of parts.

    Returns:
        The means of the parts (n, K), and the mean variance inside of the parts (K,).
    """
    widths, rows_a, rows_b = _cuts(n, len(b))
    means, variances = [], []
    for column in torch.split(b, CHUNK, dim=1):
        values = column[rows_b]
        mean = torch.zeros(n, values.shape[1], dtype=b.dtype).index_add_(0, rows_a, values * (widths * n)[:, None])
        means.append(mean)
        variances.append(widths @ (values - mean[rows_a]).square())
    return torch.cat(means, dim=1), torch.cat(variances)


def _cuts(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts of [0, 1] on which two step functions of n and m steps are constant: widths, and the step of
    each.
    """
    cuts = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))  # in units of 1/(n m)
    widths = torch.diff(cuts, prepend=cuts.new_zeros(1)).double() / (n * m)
    return widths, (cuts - 1) // m, (cuts - 1) // n


def sliced_wasserstein(a: Tensor, b: Tensor, axes: Tensor, p: float = 2.0) -> float:
    """Compute (mean_k W_p^p(a theta_k, b theta_k))^(1/p); see `sorted_wasserstein`.

    Args:
        a: (N, D).
        b: (M, D).
        axes: Unit vectors theta: (D, K).
        p: Order of the distance; default 2.

    Returns:
        The distance.
    """
    return sorted_wasserstein((a @ axes).sort(dim=0).values, (b @ axes).sort(dim=0).values, p)


def sorted_wasserstein(a: Tensor, b: Tensor, p: float = 2.0) -> float:
    """Compute (mean_k W_p^p(a_k, b_k))^(1/p) of the columns of a and b.

    On a line W_p^p is the integral over u in [0, 1] of |F_a^-1(u) - F_b^-1(u)|^p. Both quantile functions are step
    functions, so the integral is a finite sum, also for different numbers of rows.

    Args:
        a: (N, K), each column in ascending order.
        b: (M, K), sorted along the rows too.
        p: Order of the distance; default 2.

    Returns:
        The distance.
    """
    widths, rows_a, rows_b = _cuts(len(a), len(b))
    total = 0.0
    for start in range(0, a.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        gaps = a[:, part][rows_a] - b[:, part][rows_b]
        total += float(widths @ gaps.abs().pow(p).sum(dim=1))
    return float((total / a.shape[1]) ** (1 / p))
