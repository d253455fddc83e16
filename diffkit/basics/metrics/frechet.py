"""The Frechet distance between two sets of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.metric import Evaluation, Metric, Peers

from .pixels import Rows, counts, require_enough


@dataclass(frozen=True)
class Frechet(Metric):
    """The Frechet distance between samples and training examples in pixels scaled to [0, 1]; not FID.

    See `frechet_distance`. With few samples it is biased upwards: compare values of equal counts only.
    Source: Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X, eq. 4; on Inception features, Heusel et al. 2017
    (arXiv:1706.08500), eq. 6. Differs: pixels in place of Inception features.
    """

    definition = (
        "distance between samples and training examples, as far as their means and covariances describe them: "
        "|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of means m and covariances S, "
        "in pixels scaled to 0..1 (vectors: as they are); 0 is best, and fewer samples score higher"
    )

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        return _of_rows(*require_enough(evaluation), evaluation.peers)


def _of_rows(samples: Rows, reference: Rows, peers: Peers) -> Callable[[Tensor], Mapping[str, float]]:
    """Return the distance of rows of `samples` from `reference`, whose moments are computed once."""
    target = moments(reference, peers=peers)

    def of_rows(rows: Tensor) -> Mapping[str, float]:
        return {"frechet": moments_distance(*moments(samples, rows), *target), **counts(rows, reference)}

    return of_rows


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) for a: (N, D) and b: (M, D), N, M >= 2.

    With S = R^T R the eigenvalues of S_a S_b are the squared singular values of R_a R_b^T, so tr (S_a S_b)^(1/2) is
    the sum of singular values. This needs no matrix root and is exact for singular covariances. S is the unbiased
    covariance. Computed in float64.
    """
    return moments_distance(*moments(a), *moments(b))


def moments(x: Rows, rows: Tensor | None = None, peers: Peers | None = None) -> tuple[Tensor, Tensor]:
    """Compute the mean (D,) and a root R of the covariance, R^T R, both float64, in memory for 2 D rows at most.

    The rows are read in blocks, twice: for the mean, then for the triangular factor of each block around it. Factors
    are combined by a further QR decomposition, so the covariance itself, whose rounding would be squared, is never
    formed.

    Args:
        x: Rows (M, D).
        rows: Indices (N,) of the rows to use, N >= 2; default all.
        peers: The processes that share the blocks; default this one alone.

    Returns:
        The mean, and R: (min(N, D), D).
    """
    peers, used = peers or Peers(), torch.arange(len(x)) if rows is None else rows
    blocks = torch.split(used, max(MIN_BLOCK, 2 * x.shape[1]))
    sums = peers.in_order(lambda number: (x[blocks[number]].double().sum(0),), len(blocks))
    mean = torch.stack([total for (total,) in sums]).sum(0) / len(used)

    def factor(number: int) -> tuple[Tensor]:
        return (_triangular((x[blocks[number]].double() - mean) / math.sqrt(len(used) - 1)),)

    root = torch.empty(0, x.shape[1], dtype=torch.float64)
    for (part,) in peers.in_order(factor, len(blocks)):
        root = _triangular(torch.cat([root, part]))
    return mean, root


MIN_BLOCK = 1024


def _triangular(x: Tensor) -> Tensor:
    """Return R: (min(N, D), D) with R^T R = x^T x of x: (N, D)."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def moments_distance(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    """Compute the Frechet distance between two Gaussians from their `moments`.

    Args:
        mean_a: mean (D,) of the first.
        root_a: root R (K, D) of its covariance R^T R.
        mean_b: mean (D,) of the second.
        root_b: root (L, D) of its covariance.

    Returns:
        The distance, at least 0.
    """
    mean = (mean_a - mean_b).square().sum()
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return max(0.0, float(mean + root_a.square().sum() + root_b.square().sum() - 2 * cross))
