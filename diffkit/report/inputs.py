"""The inputs of a report: numbers, texts, numpy arrays and the records of a run, each of them optional.

Images are uint8 (N, H, W, C) with C = 1 or 3; vectors are float (N, D). Texts are untrusted: the report escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the records of a run; the report reads their attributes and imports nothing of diffkit
    from ..runs.results import LossByLevel, MetricResult

Array = NDArray[Any]


@dataclass(frozen=True)
class EffectiveRow:
    """One value of the resolved recipe: dotted path, value as text, and its origin ("default", "recipe", ...)."""

    path: str
    value: str
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Samples and, for each, the nearest training example: (M, H, W, C) uint8.

    `distances`: (M,), root mean square differences of pixels scaled to 0..1.
    """

    samples: Array
    nearest: Array
    distances: Array | None = None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The same few samples at K levels, noisiest first: x and the estimate x0, (K, B, H, W, C) uint8 or (K, B, D).

    `labels`: K short texts for the levels, such as "t=1000" or "1000".
    """

    x: Array
    x0: Array | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class ScheduleCurves:
    """alpha and sigma over t, each (K,), t rising from clean to noise; `sampler_t`: the times the sampler visits."""

    t: Array
    alpha: Array
    sigma: Array
    sampler_t: Array | None = None


@dataclass(frozen=True, eq=False)
class Density:
    """True density of 2-D data: values (rows, columns), row 0 at `y_min`, column 0 at `x_min`."""

    values: Array
    x_min: float
    x_max: float
    y_min: float
    y_max: float


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Samples drawn during training, after `step` steps: (N, H, W, C) uint8 or (N, D)."""

    step: int
    samples: Array


@dataclass(frozen=True, eq=False)
class LikelihoodTerms:
    """The terms of one bound on a chain of N layers, in bits per dimension, means over held-out examples.

    `t`: (N,), rising; `layers`: (N,), that of the decoder first; `prior`: the term of the noisy end. `rate` and
    `squared_error`: (N + 1,), after z_N, ..., z_1 and x0 are received. `reconstructions`: B examples after K rates,
    (K, B, H, W, C) uint8, or None; `reconstruction_rates`: (K,). `pixels`: whether values are pixels in [-1, 1].
    """

    name: str
    t: Array
    layers: Array
    prior: float
    rate: Array
    squared_error: Array
    reconstructions: Array | None = None
    reconstruction_rates: Sequence[float] = ()
    pixels: bool = False


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Held-out examples, their reconstructions by a codec, and statistics of its codes, by channel: C channels.

    `examples`, `made`: (N, H, W, C') uint8 or (N, D). `mean`, `std` of the codes: (C,). `kl`: (C,), divergence of the
    posterior from N(0, 1) in nats for each dimension, None without posterior. `histogram`: (C, K), densities between
    the `edges`: (K + 1,).
    """

    examples: Array
    made: Array
    mean: Array
    std: Array
    histogram: Array
    edges: Array
    kl: Array | None = None


@dataclass(frozen=True)
class Citation:
    """A work to cite: BibTeX key, readable reference, the components that come from it, and its address."""

    key: str
    text: str
    used_for: str = ""
    url: str = ""


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that `build_report` can show. A field at its default leaves out its part of the report.

    Attributes:
        title: Name of the run.
        task: What was trained: diffusion, codec or classifier.
        data_name: Name of the data set.
        sampling: How `samples` were drawn, in words.
        hardware: A phrase such as "2 CPU threads".
        parameters: Number of parameters of the network.
        total_steps: Training steps of the recipe.
        created: When the report was made, ISO 8601.
        recipe_yaml: The recipe, shown with a copy button.
        effective: Every value of the recipe with its origin.
        environment: Content of environment.json; nested mappings become groups.
        training_log: Rows of metrics.jsonl, each with "step" and any of "loss", "grad_norm", "lr", "images_per_second",
            "memory", "held_out_loss", "held_out_loss_ema".
        events: Rows of events.jsonl, each with "time" and "event".
        results: Results by metric; the first one is the headline of the report.
        verdict: A sentence on the quality of the samples.
        verdict_rule: The rule of the verdict.
        stage_seconds: Seconds of each stage, in the order of a run.
        samples: Images or vectors.
        depicted: What the pictures of examples show, such as "series of 64 values"; empty for images.
        sample_conditions: By name the conditions of the samples: a text for each, or images.
        real: Real examples in the same form.
        snapshots: Samples drawn during training.
        neighbours: Samples beside the training examples nearest to them.
        trajectory: A few samples at several levels.
        likelihood: The terms of each bound that was measured.
        reconstructions: Reconstructions of a codec, and statistics of its codes.
        loss_by_level: Held-out loss in bins of time.
        schedule: alpha and sigma over time.
        density: The density of two-dimensional data.
        citations: Works to cite.
        missing: Parts that this report lacks, and the command that adds each.
    """

    title: str = "diffkit run"
    task: str = "diffusion"
    data_name: str = ""
    sampling: str = ""
    hardware: str = ""
    parameters: int | None = None
    total_steps: int | None = None
    created: str = ""
    recipe_yaml: str = ""
    effective: Sequence[EffectiveRow] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    training_log: Sequence[Mapping[str, object]] = ()
    events: Sequence[Mapping[str, object]] = ()
    results: Mapping[str, MetricResult] = field(default_factory=dict)
    verdict: str = ""
    verdict_rule: str = ""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    samples: Array | None = None
    depicted: str = ""
    sample_conditions: Mapping[str, Sequence[str] | Array] = field(default_factory=dict)
    real: Array | None = None
    snapshots: Sequence[Snapshot] = ()
    neighbours: Neighbours | None = None
    trajectory: Trajectory | None = None
    likelihood: Sequence[LikelihoodTerms] = ()
    reconstructions: Reconstructions | None = None
    loss_by_level: LossByLevel | None = None
    schedule: ScheduleCurves | None = None
    density: Density | None = None
    citations: Sequence[Citation] = ()
    missing: Sequence[str] = ()


def is_images(array: Array) -> bool:
    """True for uint8 (..., H, W, C) with at least four axes; everything else counts as vectors."""
    return array.dtype == np.uint8 and array.ndim >= 4
