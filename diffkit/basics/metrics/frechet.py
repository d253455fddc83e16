"""The Frechet distance between two sets of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.metric import Evaluation, Metric

from .pixels import compared, counts


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
        return _of_rows(*compared(evaluation))


@dataclass(frozen=True)
class FeatureFrechet(Metric):
    """The Frechet distance in given features: `features` maps decoded x: (N, C, *S) to (N, D).

    `described` names the features in reports, since distances in different features cannot be compared. For use from
    Python, and by plugins that provide a feature network.
    """

    features: Callable[[Tensor], Tensor]
    described: str

    @property
    def definition(self) -> str:
        return f"Frechet distance between samples and training examples in {self.described}; 0 is best"

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        return _of_rows(self.features(evaluation.samples), self.features(evaluation.train))


def _of_rows(samples: Tensor, reference: Tensor) -> Callable[[Tensor], Mapping[str, float]]:
    """Return the distance of rows of `samples` from `reference`, whose moments are computed once."""
    target = moments(reference)

    def of_rows(rows: Tensor) -> Mapping[str, float]:
        chosen = samples[rows]
        return {"frechet": moments_distance(*moments(chosen), *target), **counts(chosen, reference)}

    return of_rows


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) for a: (N, D) and b: (M, D), N, M >= 2.

    With S = R^T R the eigenvalues of S_a S_b are the squared singular values of R_a R_b^T, so tr (S_a S_b)^(1/2) is
    the sum of singular values. This needs no matrix root and is exact for singular covariances. S is the unbiased
    covariance. Computed in float64.
    """
    return moments_distance(*moments(a), *moments(b))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the root R of the covariance, R^T R, of x: (N, D), both float64."""
    x = x.double()
    return x.mean(0), _root(x)


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


def _root(x: Tensor) -> Tensor:
    """Return R: (min(N, D), D) with R^T R the covariance of x: (N, D)."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred
