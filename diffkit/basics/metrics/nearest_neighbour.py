"""Nearest neighbours: does the model repeat its training examples?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.metric import Evaluation, Metric

from .pixels import compared, counts, pixels

CHUNK = 512  # samples at a time
CLOSE = 0.01


@dataclass(frozen=True)
class NearestNeighbour(Metric):
    """Distances of samples to their nearest training examples, against those of held-out examples.

    `ratio`: median distance of samples over that of held-out examples: 1 is as close as unseen data, 0 a copy.
    `close`: share of samples nearer than all but 1 % of the held-out examples are; .01 is as unseen data.
    `distance`: the median itself, root mean square over pixels scaled to [0, 1].
    Above 1, `ratio` says that samples are unlike the data; below, that training examples are repeated.
    Source: Meehan, Chaudhuri & Dasgupta 2020 (arXiv:2004.05675), section 3. Differs: medians are compared in place of
    ranks, over all of space at once.
    """

    definition = (
        "median distance of samples to the nearest training example over that of held-out examples; "
        "1 is as near as unseen data, 0 means copies; close: share nearer than all but 1 % of the held-out examples"
    )
    lower_is_better = None

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        samples, reference = compared(evaluation, least=1)
        held_out = pixels(evaluation.held_out, evaluation.spec)
        own, usual = (nearest(rows, reference, 1)[1][:, 0] for rows in (samples, held_out))
        typical = float(usual.median())
        return {
            "ratio": float(own.median()) / typical if typical else float(own.median() > 0),
            "close": float((own < usual.quantile(CLOSE)).double().mean()),
            "distance": float(own.median()) / samples.shape[1] ** 0.5,
            **counts(samples, reference),
            "held_out": float(len(held_out)),
        }

    def neighbours(self, evaluation: Evaluation, k: int = 1) -> tuple[Tensor, Tensor]:
        """Indices into `train` (N, k) long and distances (N, k), nearest first, of every sample: for pictures."""
        samples, reference = compared(evaluation, least=1)
        return nearest(samples, reference, k)


def nearest(rows: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices (N, k) and Euclidean distances (N, k), ascending, of the k rows of `reference` nearest to each row."""
    k = min(k, len(reference))
    indices = torch.cat(
        [
            torch.cdist(rows[start : start + CHUNK], reference).topk(k, largest=False).indices
            for start in range(0, len(rows), CHUNK)
        ]
    )
    exact = torch.stack([(rows - reference[indices[:, j]]).norm(dim=1) for j in range(k)], dim=1)
    return indices, exact
