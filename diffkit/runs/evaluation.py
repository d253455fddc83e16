"""Evaluation: metrics of samples, beside each the same metric of real held-out examples, and how certain both are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Data, InMemorySplit, Part, stack
from ..errors import DataError
from ..metric import Evaluation, Metric
from ..noise import generator
from .results import Interval, MetricResult, interval, ratio_of
from .sampling import SampleBatch

COUNTS = ("samples", "reference", "held_out")
"""Values of a metric by these names are numbers of examples that it used; the record holds them beside the values."""
MIN_RESAMPLES, MIN_HALF = 8, 4
MIN_BUDGET, SAMPLING_SHARE = 5.0, 0.1
"""Seconds that the intervals of one metric may take: the larger of a constant and a share of the time of sampling."""
MAX_EXAMPLES = 50_000
_CHUNK = 1024

Values = Mapping[str, float]


def measure(
    metrics: Sequence[tuple[str, Metric]],
    data: Data,
    drawn: SampleBatch,
    *,
    settings: Mapping[str, Any],
    seed: int,
    raise_if_stopped: Callable[[], None] = lambda: None,
) -> dict[str, MetricResult]:
    """Apply metrics to samples, and to as many real held-out examples in their place.

    Args:
        metrics: Names and metrics.
        data: The data set; its training part is the reference.
        drawn: The samples.
        settings: How they were drawn, by names of fields of `MetricResult`, for the record.
        seed: Seed of the random choices of metrics and of the intervals.
        raise_if_stopped: Called before each metric; an exception that it raises ends the evaluation.

    Returns:
        The results by name of the metric.
    """
    train, train_labels = examples(data, "train")
    held_out, held_out_labels = examples(data, "held-out")
    ours = Evaluation(
        data.spec,
        drawn.x,
        train,
        held_out,
        sample_labels=drawn.labels,
        train_labels=train_labels,
        held_out_labels=held_out_labels,
        seed=seed,
    )
    count = min(len(drawn.x), len(held_out))
    real = ours.with_samples(held_out[:count], None if held_out_labels is None else held_out_labels[:count])
    budget = max(MIN_BUDGET, SAMPLING_SHARE * drawn.seconds)
    results = {}
    for name, metric in metrics:
        raise_if_stopped()
        began = time.monotonic()
        samples = _Measured(name, "samples", metric, ours, budget)
        reals = _Measured(name, "held-out", metric, real, budget) if count else None
        headline = next(iter(samples.values))
        ratio, ratio_interval = None, None
        if reals is not None and metric.limits is None:
            ratio, ratio_interval = _ratio(headline, samples, reals, metric.lower_is_better)
        results[name] = MetricResult(
            headline=headline,
            values=_finite(samples.values),
            held_out={} if reals is None else _finite(reals.values),
            intervals=samples.intervals,
            held_out_intervals={} if reals is None else reals.intervals,
            ratio=ratio,
            ratio_interval=ratio_interval,
            definition=metric.definition,
            protocol=dict(metric.protocol(ours)),
            samples=samples.counts.get("samples", len(drawn.x)),
            reference=samples.counts.get("reference", len(train)),
            held_out_count=0 if reals is None else reals.counts.get("samples", count),
            dimension=math.prod(data.spec.shape),
            lower_is_better=metric.lower_is_better,
            limits=metric.limits,
            nfe=drawn.nfe,
            drawn=len(drawn.x),
            seed=seed,
            seconds=time.monotonic() - began,
            **settings,
        )
    return results


class _Measured:
    """A metric of one set of samples: its values and their standard errors.

    The standard error of n samples is the standard deviation over random halves of them, times sqrt(h / (n - h)) for
    halves of h samples (delete-half jackknife): no sample occurs twice in a half, as it would in a bootstrap sample,
    which metrics of pairs and neighbours would count as agreement.
    Source: Shao & Wu 1989, doi:10.1214/aos/1176347263, sec. 2.
    """

    def __init__(self, name: str, role: str, metric: Metric, evaluation: Evaluation, budget: float) -> None:
        self.size = len(evaluation.samples)
        self.of_rows = metric.prepare(evaluation)
        found = dict(self.of_rows(torch.arange(self.size)))
        self.counts = {key: int(found.pop(key)) for key in COUNTS if key in found}
        self.values: dict[str, float] = found
        self.errors = self._standard_errors((evaluation.seed, "intervals", name, role), metric.resamples, budget)

    @property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of those values that have one."""
        return {key: interval(self.values[key], error) for key, error in self.errors.items()}

    def _standard_errors(self, stream: tuple[int | str, ...], resamples: int, budget: float) -> dict[str, float]:
        """Return the standard errors by name; empty if the metric is too slow or there are too few samples."""
        half, began = self.size // 2, time.monotonic()
        rows: list[Values] = []
        if half < MIN_HALF:
            return {}
        for number in range(resamples):
            order = torch.randperm(self.size, generator=generator("cpu", *stream, number))
            try:
                rows.append(self.of_rows(order[:half]))
            except DataError:  # the metric needs more samples than half of these
                return {}
            spent = time.monotonic() - began
            if spent > budget or spent / len(rows) * MIN_RESAMPLES > budget:
                break
        if len(rows) < MIN_RESAMPLES:
            return {}
        scale = math.sqrt(half / (self.size - half))
        table = {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in self.values}
        errors = {key: scale * float(column.std()) for key, column in table.items()}
        return {key: e for key, e in errors.items() if 0 < e < math.inf and math.isfinite(self.values[key])}


def _ratio(
    headline: str, samples: _Measured, reals: _Measured, lower_is_better: bool | None
) -> tuple[float | None, Interval | None]:
    """Return the ratio of the headline value to that of equally many real examples, and the interval of the ratio."""
    value, real = samples.values[headline], reals.values[headline]
    if samples.size > reals.size:
        value = samples.of_rows(torch.arange(reals.size))[headline]
    ratio = ratio_of(value, real, lower_is_better)
    if ratio is None or headline not in samples.errors or headline not in reals.errors:
        return ratio, None
    error = samples.errors[headline] * math.sqrt(samples.size / reals.size)
    relative = math.hypot(error / value, reals.errors[headline] / real)
    return ratio, interval(ratio, ratio * relative)


def _finite(values: Values) -> dict[str, float | None]:
    """Replace numbers that are not finite by None, for JSON."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def examples(data: Data, part: Part, limit: int = MAX_EXAMPLES) -> tuple[Tensor, Tensor | None]:
    """Read examples, evenly spread over a part of the data.

    Args:
        data: The data set.
        part: "train" or "held-out".
        limit: Largest number of examples; default 50,000.

    Returns:
        x (N, C, *S) float32 on the CPU in the model's range, and labels (N,) or None.
    """
    split = data.split(part)
    count = min(limit, len(split))
    indices = torch.arange(count) * len(split) // max(1, count)
    if isinstance(split, InMemorySplit):
        raw, cond = split.rows(indices.to(split.x.device))
        return data.to_model_range(raw).float().cpu(), cond["label"].cpu() if "label" in cond else None
    xs: list[Tensor] = []
    labels: list[Tensor] = []
    for start in range(0, count, _CHUNK):
        raw, cond = stack(split, indices[start : start + _CHUNK].tolist())
        xs.append(data.to_model_range(raw).float())
        labels += [cond["label"]] if "label" in cond else []
    return torch.cat(xs), torch.cat(labels) if labels else None
