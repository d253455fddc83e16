"""The sliced Wasserstein distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit.metric import Evaluation, Metric, Peers

from .pixels import BLOCK_BYTES, Rows, counts, in_file, require_enough, row_blocks

CHUNK = 64  # directions at a time


@dataclass(frozen=True)
class SlicedWasserstein(Metric):
    """The sliced Wasserstein distance between samples and training examples, in pixels scaled to [0, 1].

    See `sliced_wasserstein`; the directions depend on the seed of the evaluation. Projections lie in temporary files,
    about 3 (N + M) `projections` float64 numbers for N samples and M training examples, so that those
    of a few directions are in memory.
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
        samples, reference = require_enough(evaluation, least=1)
        generator = evaluation.generator("sliced-wasserstein")
        axes = torch.randn(samples.shape[1], self.projections, generator=generator, dtype=torch.float64)
        axes /= axes.norm(dim=0)
        width = max(1, min(CHUNK, BLOCK_BYTES // (32 * (len(samples) + len(reference)))))
        projected, target = (project(rows, axes, width, evaluation.peers) for rows in (samples, reference))
        for part in target:
            part.copy_(part.sort(dim=0).values)

        blocks: dict[int, list[tuple[Tensor, Tensor]]] = {}

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            chosen = (part[rows].sort(dim=0).values for part in projected)
            if self.p == 2:
                if len(rows) not in blocks:
                    blocks[len(rows)] = [block_moments(part, len(rows)) for part in target]
                pairs = zip(chosen, blocks[len(rows)], strict=True)
                squares = [variances + (own - means).square().mean(0) for own, (means, variances) in pairs]
                distance = float(torch.cat(squares).mean().sqrt())
            else:
                total = sum(_sorted_powers(own, part, self.p) for own, part in zip(chosen, target, strict=True))
                distance = (total / self.projections) ** (1 / self.p)
            return {"sliced_wasserstein": distance, **counts(rows, reference)}

        return of_rows


def project(x: Rows, axes: Tensor, width: int, peers: Peers) -> list[Tensor]:
    """Compute x @ axes for rows x: (N, D), in blocks of rows and into a temporary file.

    Args:
        x: The rows.
        axes: Unit vectors: (D, K) float64.
        width: The number of columns of a part.
        peers: The processes that share the blocks of rows.

    Returns:
        The columns in parts (N, width); the last one has what is left of the K columns.
    """
    blocks = row_blocks(x, columns=axes.shape[1])
    widths = [part.shape[1] for part in torch.split(axes, width, dim=1)]
    found = torch.split(in_file((len(x) * axes.shape[1],)), [len(x) * count for count in widths])
    parts = [part.view(len(x), count) for part, count in zip(found, widths, strict=True)]
    for block, (projected,) in zip(blocks, peers.in_order(lambda i: (x[blocks[i]] @ axes,), len(blocks)), strict=True):
        for part, columns in zip(parts, torch.split(projected, width, dim=1), strict=True):
            part[block] = columns
    return parts


def block_moments(b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Compute moments of the quantile functions of the columns of b in n equal parts of [0, 1].

    For sorted a: (n, K), W_2^2(a_k, b_k) is the mean of (a_k - means_k)^2 plus variances_k, so that b is read once for
    all sets of n rows.

    Args:
        b: (M, K), each column in ascending order.
        n: Number of parts.

    Returns:
        The means of the parts (n, K), in a temporary file, and the mean variance inside of the parts (K,).
    """
    widths, rows_a, rows_b = _cuts(n, len(b))
    values = b[rows_b]
    means = in_file((n, b.shape[1])).index_add_(0, rows_a, values * (widths * n)[:, None])
    return means, widths @ (values - means[rows_a]).square()


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
    columns = zip(torch.split(a, CHUNK, dim=1), torch.split(b, CHUNK, dim=1), strict=True)
    total = sum(_sorted_powers(one, other, p) for one, other in columns)
    return float((total / a.shape[1]) ** (1 / p))


def _sorted_powers(a: Tensor, b: Tensor, p: float) -> float:
    """Return the sum over columns of W_p^p, see `sorted_wasserstein`."""
    widths, rows_a, rows_b = _cuts(len(a), len(b))
    return float(widths @ (a[rows_a] - b[rows_b]).abs().pow(p).sum(dim=1))
