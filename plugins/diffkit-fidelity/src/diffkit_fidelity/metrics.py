"""The metrics: distances between features of samples and of training examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from diffkit import DataError, Evaluation, Metric

from .distances import Blocks, frechet, mean_kernel, mean_of_pairs, moments, radii, share_inside
from .efficientnet import EfficientNetLite0
from .extractor import Extractor
from .rows import Rows, digest_of, features_of

Many = Annotated[int, Field(ge=2)]
LEAST = 2


class FeatureMetric(Metric):
    """Base of the metrics of this package: `features` extracts, at most `limit` examples of each side are used."""

    features: Extractor
    limit: int
    law_base: ClassVar[Mapping[str, object]] = {"features": "plain-values"}

    def protocol(self, evaluation: Evaluation) -> Mapping[str, str]:
        used = min(len(evaluation.samples), self.limit)
        return {**self.features.protocol(), "samples": f"{used:,}", **self._reference(evaluation)}

    def _reference(self, evaluation: Evaluation) -> Mapping[str, str]:
        """Return which examples the samples are compared with."""
        chosen = indices(len(evaluation.train), self.limit)
        return {"reference": f"train, SHA-256 {digest_of(evaluation.train, evaluation.spec, self.features, chosen)}"}

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))

    def _both(self, evaluation: Evaluation, least: int = LEAST) -> tuple[Rows, Rows]:
        """Return the features of all samples, and of the training examples that are used.

        Raises:
            DataError: There are fewer than `least` of either.
        """
        chosen = indices(len(evaluation.train), self.limit)
        for role, x in (("samples", evaluation.samples), ("training examples", chosen)):
            require(role, len(x), least)
        of = partial(features_of, spec=evaluation.spec, extractor=self.features, peers=evaluation.peers)
        return of(evaluation.samples).features, of(evaluation.train, chosen=chosen, keep=True).features


@dataclass(frozen=True)
class FID(FeatureMetric):
    """The Frechet distance between normal distributions fitted to features of samples and of training examples.

    With few samples it is biased upwards: compare values of equal counts only, and beside them the value of real
    held-out examples, which is stored with each result.
    Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6. Differs: the network is `features`, which the record states.
    """

    features: Extractor = field(default_factory=EfficientNetLite0)
    limit: Many = 50_000

    @property
    def definition(self) -> str:
        return (
            "Frechet distance |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of means m and covariances S of "
            f"{self.features.described}, between samples and training examples; 0 is best, and fewer samples score "
            "higher"
        )

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        samples, train = self._both(evaluation)
        target = moments(train.blocks(), len(train))

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            kept = spread(rows, self.limit)
            found = frechet(moments(samples.blocks(kept), len(kept)), target)
            return {"fid": found, **counts(len(kept), len(train))}

        return of_rows

    def law_reference(self, samples: Tensor, train: Tensor) -> float:
        """Eq. 6 with the eigenvalues of S S', which are those of its root, squared."""
        (m, S), (n, U) = ((x.mean(0), torch.cov(x.T)) for x in (spread(samples, self.limit), spread(train, self.limit)))
        root = torch.linalg.eigvals(S @ U).real.clamp_min(0).sqrt().sum()
        return float((m - n).square().sum() + S.trace() + U.trace() - 2 * root)


@dataclass(frozen=True)
class KID(FeatureMetric):
    """The kernel distance: the unbiased squared maximum mean discrepancy of features under k(x, y) = (x y / D + 1)^3.

    The expectation does not depend on the number of samples, and is 0 for equal distributions, so estimates can be
    negative. At most `limit` examples of each side are used, all pairs of them.
    Source: Binkowski et al. 2018 (arXiv:1801.01401), eq. 4 and 5. Differs: one estimate of all pairs in place of the
    mean of estimates of random subsets, which has the same expectation and a larger variance.
    """

    features: Extractor = field(default_factory=EfficientNetLite0)
    limit: Many = 10_000
    resamples = 16

    @property
    def definition(self) -> str:
        return (
            "how much more similar samples are to samples, and training examples to each other, than samples to "
            f"training examples: unbiased squared maximum mean discrepancy with a cubic kernel of "
            f"{self.features.described}; 0 is best"
        )

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        samples, train = self._both(evaluation)
        within, across = mean_of_pairs(train.blocks), mean_kernel(samples.blocks, train.blocks)

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            kept = spread(rows, self.limit)
            own = mean_of_pairs(blocks_of(samples, kept))
            return {"kid": own + within - 2 * float(across[kept].mean()), **counts(len(kept), len(train))}

        return of_rows

    def law_reference(self, samples: Tensor, train: Tensor) -> float:
        """Eq. 4: sums over pairs of different examples, and over all pairs of both sides."""
        x, y = spread(samples, self.limit), spread(train, self.limit)
        D, m, n = x.shape[1], len(x), len(y)
        own, real, cross = (((a @ b.T) / D + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        total = (own.sum() - own.trace()) / (m * (m - 1)) + (real.sum() - real.trace()) / (n * (n - 1))
        return float(total - 2 * cross.mean())


@dataclass(frozen=True)
class PrecisionRecall(FeatureMetric):
    """Precision: the share of samples within the reach of training examples. Recall: the reverse.

    An example reaches as far as its `k`-th neighbour of its own side. At most `limit` examples of each side are used;
    compare values of equal counts only.
    Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.
    """

    features: Extractor = field(default_factory=EfficientNetLite0)
    k: Annotated[int, Field(ge=1)] = 3
    limit: Many = 10_000
    lower_is_better = False
    resamples = 16

    @property
    def definition(self) -> str:
        return (
            "precision is the share of samples, recall the share of training examples, that lie within the distance of "
            f"an example of the other side to its k-th neighbour, k = 3 unless set, in {self.features.described}; "
            "1 is best"
        )

    def protocol(self, evaluation: Evaluation) -> Mapping[str, str]:
        return {**super().protocol(evaluation), "k": f"{self.k}"}

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        samples, train = self._both(evaluation, self.k + 1)
        real = radii(train.blocks, self.k)

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            kept = spread(rows, self.limit)
            require("samples", len(kept), self.k + 1)
            ours = blocks_of(samples, kept)
            return {
                "precision": share_inside(ours, train.blocks, real),
                "recall": share_inside(train.blocks, ours, radii(ours, self.k)),
                **counts(len(kept), len(train)),
            }

        return of_rows

    def law_reference(self, samples: Tensor, train: Tensor) -> Mapping[str, float]:
        """Eq. 2: the mean of f(phi, Phi), which is 1 if |phi - phi'| <= |phi' - NN_k(phi', Phi)| for a phi' of Phi."""

        def f(a: Tensor, b: Tensor) -> float:
            reach = torch.cdist(b, b).sort(1).values[:, self.k]
            return float((torch.cdist(a, b) <= reach).any(1).double().mean())

        x, y = spread(samples, self.limit), spread(train, self.limit)
        return {"precision": f(x, y), "recall": f(y, x)}


@dataclass(frozen=True)
class InceptionScore(FeatureMetric):
    """The score exp(E KL(p(y|x) || p(y))) of the classes that a network predicts: how sure and how varied they are.

    The mean over `splits` parts of the samples; each part must be large against the number of classes. It compares
    with no other examples and does not notice copies or missing details within a class, so beside it stands the score
    of unseen examples.
    Source: Salimans et al. 2016 (arXiv:1606.03498), sec. 4.
    """

    features: Extractor = field(default_factory=EfficientNetLite0)
    splits: Annotated[int, Field(ge=1)] = 10
    lower_is_better = None
    limit = 50_000
    law_base: ClassVar[Mapping[str, object]] = {"features": "plain-values", "splits": 1}

    @property
    def definition(self) -> str:
        return (
            "exp of the mean Kullback-Leibler divergence of the predicted classes of one sample from those of all, "
            f"by the network of {self.features.described}; higher is surer and more varied"
        )

    def protocol(self, evaluation: Evaluation) -> Mapping[str, str]:
        return {**super().protocol(evaluation), "samples": f"{len(evaluation.samples):,}"}

    def _reference(self, evaluation: Evaluation) -> Mapping[str, str]:
        return {"splits": f"{self.splits}"}

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        require("samples", len(evaluation.samples), max(LEAST, self.splits))
        scores = features_of(evaluation.samples, evaluation.spec, self.features, peers=evaluation.peers).scores
        assert scores is not None

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            require("samples", len(rows), self.splits)
            found = [_score(blocks_of(scores, part), len(part)) for part in rows.tensor_split(self.splits)]
            return {
                "inception_score": sum(found) / len(found),
                "spread": float(torch.tensor(found, dtype=torch.float64).std(correction=0)),
                "samples": float(len(rows)),
            }

        return of_rows

    def law_reference(self, samples: Tensor) -> float:
        """The mean over splits of exp E KL, with sums of probabilities."""
        found = []
        for part in samples.tensor_split(self.splits):
            p = part.exp() / part.exp().sum(1, keepdim=True)
            found.append(math.exp(float((p * (p / p.mean(0)).log()).sum(1).mean())))
        return sum(found) / len(found)


def _score(blocks: Blocks, count: int) -> float:
    """Compute exp(E KL(p(y|x) || p(y))) of N rows of scores: exp of the entropy of the mean, less the mean entropy."""
    own, mean = 0.0, torch.zeros((), dtype=torch.float64)
    for block in blocks():
        logs = block.double().log_softmax(1)
        mean = mean + logs.exp().sum(0) / count
        own += float((logs.exp() * logs).sum()) / count
    return math.exp(own - float(torch.special.xlogy(mean, mean).sum()))


def blocks_of(rows: Rows, chosen: Tensor) -> Blocks:
    """Return a function that yields the chosen rows in blocks."""

    def each() -> Iterable[Tensor]:
        return rows.blocks(chosen)

    return each


def indices(count: int, limit: int) -> Tensor:
    """Return at most `limit` of the numbers 0 to `count` - 1, evenly spread: (M,)."""
    used = min(count, limit)
    return torch.arange(used) * count // max(1, used)


def spread(x: Tensor, limit: int) -> Tensor:
    """Return at most `limit` of the rows, evenly spread."""
    return x[indices(len(x), limit)]


def counts(samples: int, reference: int) -> Mapping[str, float]:
    """Return the numbers of examples, which the record states."""
    return {"samples": float(samples), "reference": float(reference)}


def require(role: str, found: int, least: int) -> None:
    """Require a number of examples.

    Args:
        role: What they are, for the message.
        found: How many there are.
        least: How many the metric needs.

    Raises:
        DataError: There are fewer.
    """
    if found < least:
        raise DataError(
            f"{found} {role} are too few for this metric, which requires {least}",
            code="DK331",
            fix="raise sample.count" if role == "samples" else "give more data",
        )
