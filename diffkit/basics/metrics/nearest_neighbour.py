"""Nearest neighbours: whether a model repeats its training examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.metric import Evaluation, Metric

from .pixels import compared, counts, pixels

CHUNK = 512  # samples at a time
CLOSE = 0.01


@dataclass(frozen=True)
class NearestNeighbour(Metric):
    """Distances of samples to their nearest training examples, compared with those of held-out examples.

    ratio      median distance of samples / median distance of held-out examples: 1 is as close as unseen data, 0 means
               copies; above 1 samples differ from the data
    close      share of samples that are nearer than all but 1 % of the held-out examples; 0.01 for unseen data
    distance   the median distance of samples, as root mean square over pixels scaled to [0, 1]

    Source: Meehan, Chaudhuri & Dasgupta 2020 (arXiv:2004.05675), section 3. Differs: medians are compared in place of
    ranks, over the whole space at once.
    """

    definition = (
        "median distance of samples to the nearest training example, divided by that of held-out examples; "
        "1 is as near as unseen data, 0 means copies; close: share nearer than all but 1 % of the held-out examples"
    )
    lower_is_better = None

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        samples, reference = compared(evaluation, least=1)
        held_out = pixels(evaluation.held_out, evaluation.spec)
        every, usual = (nearest(rows, reference, 1)[1][:, 0] for rows in (samples, held_out))
        typical, near = float(usual.median()), usual.quantile(CLOSE)

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            own = every[rows]
            return {
                "ratio": float(own.median()) / typical if typical else float(own.median() > 0),
                "close": float((own < near).double().mean()),
                "distance": float(own.median()) / samples.shape[1] ** 0.5,
                **counts(own, reference),
                "held_out": float(len(held_out)),
            }

        return of_rows

    def neighbours(self, evaluation: Evaluation, k: int = 1) -> tuple[Tensor, Tensor]:
        """Return indices into `train` (N, k) long and distances (N, k) of every sample, nearest first."""
        samples, reference = compared(evaluation, least=1)
        return nearest(samples, reference, k)


def nearest(rows: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the rows of `reference` nearest to each row.

    Args:
        rows: (N, D).
        reference: (M, D).
        k: Neighbours per row; at most M are returned.

    Returns:
        Indices (N, k) and Euclidean distances (N, k), nearest first.
    """
    k = min(k, len(reference))
    indices = torch.cat(
        [
            torch.cdist(rows[start : start + CHUNK], reference).topk(k, largest=False).indices
            for start in range(0, len(rows), CHUNK)
        ]
    )
    exact = torch.stack([(rows - reference[indices[:, j]]).norm(dim=1) for j in range(k)], dim=1)
    return indices, exact
