"""Metrics: numbers that measure the distance between samples and data, or how well a model explains data.

A metric receives an `Evaluation` and returns named floats. A metric of samples is applied twice: to the samples, and to
real held-out data in their place, so that a report can show the score of a perfect model beside each number. A metric
that needs the model is applied to held-out data, and to some training examples in their place; no sample is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .data import DataSpec
from .interface import attribute
from .noise import generator

if TYPE_CHECKING:
    from .classifier import Classifier
    from .codec import Codec
    from .conditioner import Conditions
    from .denoiser import Denoiser
    from .grid import Grid
    from .guidance import Guidance
    from .schedule import Schedule

Needs = Literal["samples", "model", "pairs", "classifier"]
MEASURES: Mapping[str, tuple[Needs, ...]] = {
    "diffusion": ("samples", "model"),
    "codec": ("samples", "pairs"),
    "classifier": ("classifier",),
}
"""What can be measured in a run of each task; the samples of a codec are reconstructions."""
WORDS: Mapping[str, str] = {
    "samples": "samples",
    "model": "a diffusion model",
    "pairs": "pairs of examples and reconstructions",
    "classifier": "a classifier",
}
"""What metrics measure, in messages."""


@dataclass(frozen=True)
class ModelSetting:
    """The properties of a model that its recipe determines, before and after training.

    spec       the spec of what the model diffuses: of the data after the codec
    encoded    whether a codec changes the data
    schedule   the schedule of its training
    grid       the grid of the evaluation
    guidance   the guidance of sampling, in the order of application
    provides   names of further outputs of the model, see `Parameterization.provides`
    conditions its conditioners; None without conditions
    """

    spec: DataSpec
    schedule: Schedule
    grid: Grid
    guidance: Sequence[Guidance] = ()
    provides: Collection[str] = ()
    conditions: Conditions | None = None
    encoded: bool = False


class Peers:
    """The processes that compute metrics together. This base class is a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return True

    def in_order(self, compute: Callable[[int], Tensors], count: int) -> Iterator[Tensors]:
        """Yield compute(0), ..., compute(count - 1), which are tensors.

        Of several processes each computes a share of them, and every process gets all of them, so `compute` must not
        depend on the process. Every process reads the iterator to the same place.
        """
        return map(compute, range(count))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return flag


Tensors = tuple[Tensor, ...]


class Store:
    """Named arrays that outlive an evaluation, in groups; this one keeps them in memory."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], dict[str, Tensor]] = {}

    def read(self, name: str, group: str) -> dict[str, Tensor]:
        """Return the arrays of a group; empty if there are none."""
        return self._groups.get((name, group), {})

    def write(self, name: str, group: str, arrays: Mapping[str, Tensor]) -> None:
        """Replace the arrays of a group; an empty mapping removes it.

        Args:
            name: The name of a file.
            group: A group in it.
            arrays: Tensors on the CPU, by name.
        """
        self._groups[name, group] = dict(arrays)


@dataclass(frozen=True)
class TrainedModel:
    """The trained model, for metrics that need it.

    setting      what the recipe determines
    denoise      the model, without guidance
    codec        converts examples to what the model diffuses, and back
    device       the device of the model
    batch_size   examples at a time; no value depends on it
    weights      a hash of the weights, under which the store keeps values; it differs for models that share a store
    key          the name of the result
    store        keeps what is expensive, such as the parts of an evaluation that was interrupted
    watch        called with the finished and the total number of parts; an exception that it raises ends the evaluation
    """

    setting: ModelSetting
    denoise: Denoiser
    codec: Codec
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 64
    weights: str = ""
    key: str = ""
    store: Store = field(default_factory=Store)
    watch: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class TrainedClassifier:
    """The trained classifier of noisy examples, for metrics that need it.

    classify     (x, level) -> logits: (B, K), without gradient
    codec        converts examples to what the classifier receives with noise
    device       the device of the classifier
    batch_size   examples at a time; no value depends on it
    """

    classify: Classifier
    codec: Codec
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 64


@dataclass(frozen=True)
class Evaluation:
    """The data that metrics compare, in the range of the model: (N, C, *S) float32 on the CPU; labels (N,) long.

    spec       the spec of the data
    samples    the samples to measure
    train      real examples to compare them with
    held_out   real examples that were not trained on
    seed       seed of random projections and splits; see `generator`
    model      the trained model, for a metric that needs it; then there are no samples
    peers      the processes that measure together, each with the same evaluation
    references the examples that the samples reconstruct, row by row, for a metric of pairs
    classifier the trained classifier, for a metric that needs it; labels are of the condition that it predicts

    The examples may be too many for the memory. They lie in files then, so a metric reads them in batches.
    """

    spec: DataSpec
    samples: Tensor
    train: Tensor
    held_out: Tensor
    sample_labels: Tensor | None = None
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    seed: int = 0
    model: TrainedModel | None = None
    peers: Peers = field(default_factory=Peers)
    references: Tensor | None = None
    classifier: TrainedClassifier | None = None

    def generator(self, stream: str) -> torch.Generator:
        """Return a CPU generator for the random numbers of a metric; `stream` names what they are used for."""
        return generator("cpu", self.seed, "metric", stream)

    def with_samples(self, samples: Tensor, labels: Tensor | None) -> Evaluation:
        """Return a copy with other samples: (N, C, *S), and their labels (N,) or None."""
        return replace(self, samples=samples, sample_labels=labels)


class Metric(ABC):
    """Base of metrics. Implement `__call__` and set `definition`, which the laws require to be a sentence."""

    @attribute
    def needs(self) -> Needs:
        """What the metric measures: `samples` (default), or the `model` on held-out data, without samples; `pairs` of
        reconstructions and the examples of a codec; or a `classifier`.

        A value `standard_error` of a metric of the model is that of its headline.
        """
        return "samples"

    @attribute
    def definition(self) -> str:
        """The sentence that reports print under the number: what it measures, in which unit. Empty is a broken law."""
        return ""

    @attribute
    def lower_is_better(self) -> bool | None:
        """Whether lower values are better; None if the score of real held-out data is best. Default True."""
        return True

    @attribute
    def resamples(self) -> int:
        """Number of random halves of the samples for confidence intervals; 0 for a slow metric. Default 40."""
        return 40

    @attribute
    def limits(self) -> tuple[float, float, float] | None:
        """The largest values of the headline that count as on par with, close to, and apart from real data.

        Default None: the metric is graded by its ratio to the value of real held-out data.
        """
        return None

    def protocol(self, evaluation: Evaluation) -> Mapping[str, str]:
        """Return further settings that the values depend on, by name: `compare` refuses results that differ in one.

        Default: nothing, for a metric that its `definition` describes completely.
        """
        return {}

    def check(self, setting: ModelSetting) -> None:  # noqa: B027 - most metrics fit every model
        """Raise UsageError if the metric does not fit the model of a recipe; called before anything is trained."""

    @abstractmethod
    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return named values, the headline first."""

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        """Return the metric as a function of the rows (M,) of the samples that it uses.

        Override it to compute once what does not depend on the rows: confidence intervals call the function
        `resamples` times.
        """

        def of_rows(rows: Tensor) -> Mapping[str, float]:
            first = torch.equal(rows, torch.arange(len(rows)))
            index = slice(len(rows)) if first else rows  # a slice copies nothing
            labels = None if evaluation.sample_labels is None else evaluation.sample_labels[index]
            references = None if evaluation.references is None else evaluation.references[index]
            return self(replace(evaluation.with_samples(evaluation.samples[index], labels), references=references))

        return of_rows
