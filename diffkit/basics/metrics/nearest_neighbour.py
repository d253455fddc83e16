"""Nearest neighbours: whether a model repeats its training examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.metric import Evaluation, Metric, Peers, Tensors

from .pixels import Pixels, Rows, counts, require_enough, row_blocks

CHUNK = 2048  # the most samples, and training examples, whose distances are compared at a time
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
        samples, reference = require_enough(evaluation, least=1)
        held_out = Pixels(evaluation.held_out, evaluation.spec)
        every, usual = (nearest(rows, reference, 1, evaluation.peers)[1][:, 0] for rows in (samples, held_out))
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
        samples, reference = require_enough(evaluation, least=1)
        return nearest(samples, reference, k, evaluation.peers)


def nearest(rows: Rows, reference: Rows, k: int, peers: Peers | None = None) -> tuple[Tensor, Tensor]:
    """Find the rows of `reference` nearest to each row; a block of each is in memory at a time.

    Args:
        rows: (N, D).
        reference: (M, D).
        k: Neighbours per row; at most M are returned.
        peers: The processes that share the rows; default this one alone.

    Returns:
        Indices (N, k) and Euclidean distances (N, k), nearest first.
    """
    blocks, k = row_blocks(rows, CHUNK), min(k, len(reference))

    def of_block(number: int) -> Tensors:
        own = rows[blocks[number]]
        indices, distances = torch.empty(len(own), 0, dtype=torch.long), own.new_empty(len(own), 0)
        for block in row_blocks(reference, CHUNK):
            found = torch.cdist(own, reference[block]).topk(min(k, block.stop - block.start), largest=False)
            indices = torch.cat([indices, found.indices + block.start], 1)
            distances, order = torch.cat([distances, found.values], 1).topk(min(k, indices.shape[1]), largest=False)
            indices = indices.gather(1, order)
        exact = torch.stack([(own - reference[indices[:, j]]).norm(dim=1) for j in range(k)], dim=1)
        return indices, exact

    found = zip(*(peers or Peers()).in_order(of_block, len(blocks)), strict=True)
    indices, distances = (torch.cat(parts) for parts in found)
    return indices, distances
