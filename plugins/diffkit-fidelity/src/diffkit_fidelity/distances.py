"""Distances between sets of features, in blocks of rows, so that memory does not grow with the number of examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-12
"""Bound on the error of a squared distance, as a share of the squared lengths of both rows: far above that of float64
with thousands of features, and far below that of features in float32."""


class Moments(NamedTuple):
    """The mean (D,) of features and a root R (K, D) of their covariance R^T R, both float64."""

    mean: Tensor
    root: Tensor


def moments(blocks: Iterable[Tensor], count: int) -> Moments:
    """Compute mean and unbiased covariance of N rows that come in blocks.

    With at most D rows, R holds the centred rows; with more, the covariance is summed around the mean of the first
    block, and R comes from its eigenvectors. Both need memory for D rows.

    Args:
        blocks: Matrices (B, D).
        count: The number N of rows in all blocks, at least 2.

    Returns:
        The moments.
    """
    each = iter(blocks)
    first = next(each).double()
    width, shift = first.shape[1], first.mean(0)
    rest = (block.double() for block in each)
    if count <= width:
        x = torch.cat([first, *rest])
        mean = x.mean(0)
        return Moments(mean, (x - mean) / math.sqrt(count - 1))
    total, product = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for block in _chain(first, rest):
        centred = block - shift
        total += centred.sum(0)
        product.addmm_(centred.T, centred)
    product.addr_(total, total, alpha=-1 / count).div_(count - 1)
    values, vectors = torch.linalg.eigh(product)
    return Moments(shift + total / count, values.clamp_min(0).sqrt()[:, None] * vectors.T)


def _chain(first: Tensor, rest: Iterable[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def frechet(a: Moments, b: Moments) -> float:
    """Compute |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)).

    The eigenvalues of S S' are the squared singular values of R R'^T, so the trace of the root is their sum: no matrix
    root is computed, and singular covariances are exact.
    Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6.
    """
    cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    value = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * cross
    return max(0.0, float(value))


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Compute k(x, y) = (x y / D + 1)^3: (N, M) of rows a (N, D) and b (M, D).

    Source: Binkowski et al. 2018 (arXiv:1801.01401), eq. 5.
    """
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


Blocks = Callable[[], Iterable[Tensor]]
"""A function that yields the rows of a matrix (N, D) from the start, in blocks."""


def mean_kernel(a: Blocks, b: Blocks) -> Tensor:
    """Compute the mean of `cubic_kernel` over the rows of b for each row of a: (N,) float64."""
    found = []
    for rows in a():
        parts = [cubic_kernel(rows, others) for others in b()]
        found.append(torch.stack([part.sum(1) for part in parts]).sum(0) / sum(part.shape[1] for part in parts))
    return torch.cat(found)


def mean_of_pairs(a: Blocks) -> float:
    """Compute the mean of `cubic_kernel` over pairs of different rows of a: (N, D), N >= 2."""
    rows = mean_kernel(a, a)
    own = torch.cat([((x.double().square().sum(1)) / x.shape[1] + 1) ** 3 for x in a()])
    return float((len(rows) * rows - own).sum() / (len(rows) * (len(rows) - 1)))


def radii(a: Blocks, k: int) -> Tensor:
    """Compute the distance of each row of a: (N, D) to its k-th neighbour among the others: (N,) float64."""
    found = []
    for rows in a():
        nearest = torch.empty(len(rows), 0, dtype=torch.float64)
        for others in a():
            both = torch.cat([nearest, distances(rows, others)], 1)
            nearest = both.topk(min(k + 1, both.shape[1]), largest=False).values  # the row itself is one of them
        found.append(nearest[:, -1])
    return torch.cat(found)


def share_inside(a: Blocks, b: Blocks, reach: Tensor) -> float:
    """Compute the share of rows of a that lie in the ball of a row of b; its surface is part of it.

    Squared distances are rounded by up to ROUNDING of the squared lengths of both rows, so copies of a centre lie in
    its ball even if it has no radius, as that of an example with copies of its own.

    Args:
        a: Rows (N, D).
        b: Rows (M, D), the centres.
        reach: The radii (M,) of the balls.

    Returns:
        A number from 0 to 1.
    """
    inside = []
    for rows in a():
        found, start = torch.zeros(len(rows), dtype=torch.bool), 0
        for centres in b():
            limits = reach[start : start + len(centres)].square() + ROUNDING * _lengths(centres)
            allowed = limits + ROUNDING * _lengths(rows)[:, None]
            found |= (distances(rows, centres).square() <= allowed).any(1)
            start += len(centres)
        inside.append(found)
    return float(torch.cat(inside).double().mean())


def _lengths(rows: Tensor) -> Tensor:
    """Return the squared lengths of rows (N, D): (N,) float64."""
    return rows.double().square().sum(1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute Euclidean distances (N, M) float64 between rows of a (N, D) and b (M, D)."""
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")
