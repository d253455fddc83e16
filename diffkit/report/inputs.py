"""What a report is made of: plain numbers, texts and numpy arrays, every one of them optional.

Images are uint8 (N, H, W, C) with C = 1 or 3; vectors are float (N, D). Texts are untrusted: the report escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class EffectiveRow:
    """One value of the resolved recipe: dotted path, value as text, and its origin ("default", "recipe", ...)."""

    path: str
    value: str
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Samples and, for each, the nearest training example: (M, H, W, C) uint8; `distances`: (M,) in model units."""

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
class LossByLevel:
    """Mean loss in bins of the noise level: `level` and `loss` (K,), on the axis "t" or "half_logsnr"."""

    level: Array
    loss: Array
    held_out: Array | None = None
    axis: Literal["t", "half_logsnr"] = "t"


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


@dataclass(frozen=True)
class Citation:
    """A work that the run rests on: BibTeX key, readable reference, and what in the run comes from it."""

    key: str
    text: str
    used_for: str = ""


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that `build_report` may show. A field left at its default leaves out its part of the report.

    `title`: name of the run. `data_name`: name of the data set. `sampling`: how `samples` were drawn, in words.
    `hardware`: one phrase, such as "2 CPU threads". `parameters`: of the network. `total_steps`: that the recipe asks
    for. `created`: when the report was made, as text.

    `recipe_yaml`: the text shown with a copy button. `effective`: rows of effective.yaml. `environment`: content of
    environment.json, nested mappings become groups. `metrics`: rows of metrics.jsonl ({"step", "loss", "grad_norm",
    "lr", "images_per_second", "memory", "held_out_loss"}, all but the step optional). `events`: rows of events.jsonl
    ({"time", "event", ...}; "step" where known).

    `results`: content of results.json: {"metrics": {name: {"values": {key: float}, "held_out": {key: float},
    "definition": str, "samples": int, "reference": int, "lower_is_better": bool | None, "nfe": int, "sampler": str}},
    "timings": {stage: seconds}}. The first metric is the headline, and of each metric its first value.

    `samples`, `real`: images or vectors, `real` from the data in the same form. `progress`: samples drawn while
    training. `missing`: texts that say what this report lacks and which command adds it.
    """

    title: str = "diffkit run"
    data_name: str = ""
    sampling: str = ""
    hardware: str = ""
    parameters: int | None = None
    total_steps: int | None = None
    created: str = ""
    recipe_yaml: str = ""
    effective: Sequence[EffectiveRow] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, object]] = ()
    events: Sequence[Mapping[str, object]] = ()
    results: Mapping[str, object] = field(default_factory=dict)
    samples: Array | None = None
    real: Array | None = None
    progress: Sequence[Snapshot] = ()
    neighbours: Neighbours | None = None
    trajectory: Trajectory | None = None
    loss_by_level: LossByLevel | None = None
    schedule: ScheduleCurves | None = None
    density: Density | None = None
    citations: Sequence[Citation] = ()
    missing: Sequence[str] = ()


def is_images(array: Array) -> bool:
    """True for uint8 (..., H, W, C) with at least four axes; everything else counts as vectors."""
    return array.dtype == np.uint8 and array.ndim >= 4
