"""Metrics from classifiers: whether samples differ from data, and whether they match their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffkit.basics.extra import missing
from diffkit.metric import Evaluation, Metric, Peers, Tensors

from .pixels import Pixels, counts, require_enough, row_blocks, subset

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.tree import ExtraTreeClassifier

GROWN = 5
"""Trees that are in memory at a time, where the forest is only needed for one prediction of each example."""


@dataclass(frozen=True)
class Classifier(Metric):
    """Accuracy of a forest of `trees` random trees on pixels. Raises PluginError DK290 without scikit-learn.

    two_sample      cross-validated accuracy, in `folds` parts, in separating samples from the same number of training
                    examples, at most `limit` of each: 0.5 is indistinguishable (within about 0.5 / sqrt(examples)),
                    1 is fully separable
    histogram       half the sum of differences between the predicted class shares of samples and the label shares of
                    the training part
    confidence      mean share of trees that vote for the predicted class
    accuracy        how often the predicted class of a sample is its label
    real_accuracy   how often the predicted class of a held-out example is its label

    The last four require labels; their forest learns from at most 10 `limit` training examples. The memory is that of
    these examples in float32, of five trees and of the votes for each class, for any number of samples.
    Source: Lopez-Paz & Oquab 2017 (arXiv:1610.06545), eq. 2; trees: Geurts et al. 2006, 10.1007/s10994-006-6226-1.
    """

    trees: Annotated[int, Field(ge=1)] = 200
    folds: Annotated[int, Field(ge=2)] = 5
    limit: Annotated[int, Field(ge=10)] = 2000
    definition = (
        "cross-validated accuracy of a forest of random trees in separating samples from the same number of training "
        "examples, in pixels; 0.5 is indistinguishable. If the data has labels, a second forest predicts classes"
    )

    resamples = 0
    limits = (0.55, 0.65, 0.8)
    law_base = {"trees": 20, "folds": 2}  # noqa: RUF012 - never changed
    law_exemptions = {"order-free": "each tree is grown on random rows, chosen by their positions"}  # noqa: RUF012

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        samples, reference = require_enough(evaluation, least=self.folds)
        generator = evaluation.generator("classifier")
        count = min(len(samples), len(reference), self.limit)
        ours, real = (single(rows, subset(len(rows), count, generator)) for rows in (samples, reference))
        values = {"two_sample": self._two_sample(ours, real, evaluation.seed, evaluation.peers), **counts(ours, real)}
        if evaluation.train_labels is not None:
            values |= self._classes(evaluation, samples, reference, evaluation.train_labels, generator)
        return values

    def _two_sample(self, samples: Tensor, reference: Tensor, seed: int, peers: Peers) -> float:
        forest = self._forest(seed)
        from sklearn.model_selection import StratifiedKFold

        x = torch.cat([samples, reference]).numpy()
        real = np.repeat([0, 1], [len(samples), len(reference)])
        folds = list(StratifiedKFold(self.folds, shuffle=True, random_state=seed).split(x, real))

        def score(number: int) -> Tensors:
            learned, judged = folds[number]
            accuracy = forest.fit(x[learned], real[learned]).score(x[judged], real[judged])
            return (torch.tensor(accuracy, dtype=torch.float64),)

        return float(np.mean([float(one) for (one,) in peers.in_order(score, self.folds)]))

    def _classes(
        self, evaluation: Evaluation, samples: Pixels, reference: Pixels, labels: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        from sklearn.tree import ExtraTreeClassifier

        rows = subset(len(reference), 10 * self.limit, generator)
        judged = samples, Pixels(evaluation.held_out, evaluation.spec)
        names, learned = torch.from_numpy(np.unique(labels[rows])), single(reference, rows).numpy()
        votes, real_votes = (torch.zeros(len(x), len(names), dtype=torch.float64) for x in judged)

        def add(seeds: Sequence[int]) -> None:
            trees = [ExtraTreeClassifier(random_state=seed).fit(learned, labels[rows].numpy()) for seed in seeds]
            for x, total in zip(judged, (votes, real_votes), strict=True):
                add_votes(trees, x, total, evaluation.peers)

        # the seeds by which a forest of this seed grows its trees, which all learn from all rows
        seeds = np.random.RandomState(evaluation.seed).randint(np.iinfo(np.int32).max, size=self.trees).tolist()
        for start in range(0, self.trees, GROWN):
            add(seeds[start : start + GROWN])
        votes, real_votes = votes / self.trees, real_votes / self.trees
        found, real_found = votes.argmax(1), real_votes.argmax(1)
        shares = torch.stack([(names[found] == k).double().mean() for k in names])
        real_shares = torch.stack([(labels == k).double().mean() for k in names])
        values = {
            "histogram": float((shares - real_shares).abs().sum() / 2),
            "confidence": float(votes.max(1).values.mean()),
        }
        if evaluation.sample_labels is not None:
            values["accuracy"] = float((names[found] == evaluation.sample_labels).double().mean())
        if evaluation.held_out_labels is not None:
            values["real_accuracy"] = float((names[real_found] == evaluation.held_out_labels).double().mean())
        return values

    def _forest(self, seed: int) -> ExtraTreesClassifier:
        try:
            from sklearn.ensemble import ExtraTreesClassifier
        except ImportError as error:
            raise missing("scikit-learn", "quickstart", "metric `classifier`") from error
        return ExtraTreesClassifier(self.trees, random_state=seed)


def add_votes(trees: Sequence[ExtraTreeClassifier], x: Pixels, total: Tensor, peers: Peers) -> None:
    """Add the shares of classes that trees predict to `total`, tree by tree as a forest does.

    Args:
        trees: The trees.
        x: The examples (N, D), read in blocks.
        total: The sum so far (N, K), which is changed in place.
        peers: The processes that share the blocks.
    """
    blocks = row_blocks(x)

    def add(number: int) -> Tensors:
        rows, found = x[blocks[number]].float().numpy(), total[blocks[number]].clone()
        for tree in trees:
            found += torch.from_numpy(tree.predict_proba(rows))
        return (found,)

    for block, (found,) in zip(blocks, peers.in_order(add, len(blocks)), strict=True):
        total[block] = found


def single(x: Pixels, rows: Tensor) -> Tensor:
    """Return rows (N,) of x: (M, D) in float32, the precision of the trees, converted in blocks: (N, D)."""
    found = torch.empty(len(rows), x.shape[1])
    for block in row_blocks(found):
        found[block] = x[rows[block]].float()
    return found
