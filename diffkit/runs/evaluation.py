"""Evaluation: metrics of samples, beside each the same metric of real held-out examples, and how certain both are.

A metric of the model is measured on held-out examples and, for comparison, on some training examples.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec import Identity
from ..config import ComponentSpec
from ..data import LABEL, Data, Part, stack
from ..errors import DataError, UsageError
from ..metric import MEASURES, WORDS, Evaluation, Metric, ModelSetting, Peers, Store, Tensors, TrainedModel
from ..noise import generator
from ..recipe.assembly import Assembly, Parts, build
from ..recipe.signature import parameters_of
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.progress import console_progress
from ..storage.atomic import writing
from ..storage.run_directory import RunDirectory
from .results import STANDARD_ERROR, Interval, MetricResult, interval, ratio_of
from .sample_files import BLOCK_BYTES, Array, join_blocks, load_npz, save_npz
from .sampling import SampleBatch

COUNTS = ("samples", "reference", "held_out")
"""Values of a metric by these names are numbers of examples that it used; the record holds them beside the values."""
MIN_RESAMPLES, MIN_HALF = 8, 4
MIN_BUDGET, SAMPLING_SHARE = 5.0, 0.1
"""Seconds that the intervals of one metric may take: the larger of a constant and a share of the time of sampling."""
MAX_EXAMPLES = 50_000
MAX_TRAIN = 128
"""Training examples on which a metric of the model is measured, beside held-out ones."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Measurement:
    """The arguments of an evaluation; `count` and `steps` None: those of the recipe."""

    count: int | None
    steps: int | None
    seed: int
    weights: str
    progress: bool
    raise_if_stopped: Callable[[], None]
    ranks: Ranks


def result_names(metrics: Sequence[ComponentSpec]) -> list[str]:
    """Return the name of the result of each metric: its own, or with its options if several have this name."""
    names = [metric.name for metric in metrics]
    return [labelled(one) if names.count(one.name) > 1 else one.name for one in metrics]


def labelled(metric: ComponentSpec) -> str:
    """Return the name of a metric with those of its options that differ from their defaults."""
    defaults = {parameter.name: parameter.default for parameter in parameters_of(metric)[1]}
    options = [f"{name}={value}" for name, value in metric.options.items() if value != defaults.get(name)]
    return f"{metric.name}({', '.join(options)})" if options else metric.name


def chosen_metrics(
    parts: Parts, wanted: str | Sequence[str] | None, options: Mapping[str, Any]
) -> list[tuple[str, Metric]]:
    """Return metrics with the names of their results: those of the recipe if their options are the same.

    Args:
        parts: The objects of the recipe.
        wanted: Names of metrics; None: those of the recipe.
        options: Options of these metrics.

    Returns:
        The names and the metrics.

    Raises:
        UsageError: There are options, but no names.
        RecipeError: There is no metric of this name, or it does not have these options.
    """
    rows = parts.recipe.evaluate.metrics
    own = dict(zip(result_names(rows), parts.metrics, strict=True))
    if wanted is None:
        if options:
            raise UsageError("options require the name of a metric", code="DK017", fix="pass --metric NAME")
        return list(own.items())
    found: dict[str, Metric] = {}
    for name in [wanted] if isinstance(wanted, str) else wanted:
        same = {key: own[key] for key, row in zip(result_names(rows), rows) if name in (key, row.name)}
        if options:
            built = build("metric", name, **options)
            label = labelled(ComponentSpec("metric", name, options))
            equal = [key for key, row in zip(result_names(rows), rows) if labelled(row) == label]
            found[equal[0] if equal else label] = built
        else:
            found |= same or {name: build("metric", name)}
    return list(found.items())


def model_setting(assembly: Assembly) -> ModelSetting:
    """Return what the objects of a recipe determine of its model, for metrics that need it."""
    return ModelSetting(
        assembly.spec,
        assembly.schedule,
        assembly.evaluation_grid,
        assembly.guidance,
        assembly.parameterization.provides,
        assembly.conditions,
        encoded=not isinstance(assembly.codec, Identity),
    )


class RunStore(Store):
    """The arrays that evaluations keep in the folder `likelihood` of a run: NAME.npz, with members GROUP/ARRAY."""

    def __init__(self, directory: RunDirectory, *, writes: bool = True) -> None:
        self._folder, self._writes = directory.likelihood, writes

    def read(self, name: str, group: str) -> dict[str, Tensor]:
        """Return the arrays of a group. Raises CheckpointError if the file is damaged."""
        found = load_groups(self._folder / f"{name}.npz").get(group, {})
        return {array: torch.from_numpy(value) for array, value in found.items()}

    def write(self, name: str, group: str, arrays: Mapping[str, Tensor]) -> None:
        """Replace a group, on the process that writes. Raises ResourceError if the file cannot be written."""
        if not self._writes:
            return
        path = self._folder / f"{name}.npz"
        groups = {**load_groups(path), group: {array: value.numpy() for array, value in arrays.items()}}
        flat = {f"{at}/{array}": value for at, members in groups.items() for array, value in members.items()}
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            save_npz(path, flat) if flat else path.unlink(missing_ok=True)


def load_groups(path: Path) -> dict[str, dict[str, Array]]:
    """Return the groups of arrays in a file of `RunStore`; none without a file. Raises CheckpointError if damaged."""
    groups: dict[str, dict[str, Array]] = {}
    for name, array in (load_npz(path) if os.path.lexists(path) else {}).items():
        group, _, member = name.rpartition("/")
        groups.setdefault(group, {})[member] = array
    return groups


def measure(
    metrics: Sequence[tuple[str, Metric]],
    data: Data,
    drawn: SampleBatch | None,
    *,
    settings: Mapping[str, Any],
    seed: int,
    model: TrainedModel | None = None,
    progress: bool = False,
    raise_if_stopped: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, MetricResult]:
    """Apply metrics to samples, and to as many real held-out examples in their place; others to the model.

    Args:
        metrics: Names and metrics.
        data: The data set; its training part is the reference.
        drawn: The samples; None if no metric needs them.
        settings: How the samples were drawn, and the weights, by names of fields of `MetricResult`, for the record.
        seed: Seed of the random choices of metrics and of the intervals.
        model: The trained model, for metrics that need it.
        progress: Show the progress of metrics of the model on standard error.
        raise_if_stopped: Called before each metric and each part of its work; an exception that it raises ends the
            evaluation.
        folder: An empty folder for the examples, so that they take no memory.
        ranks: The processes that measure together; each of them gets the same results.

    Returns:
        The results by name of the metric.
    """
    train, train_labels = examples(data, "train", folder=folder, ranks=ranks)
    held_out, held_out_labels = examples(data, "held-out", folder=folder, ranks=ranks)
    whole = Evaluation(
        data.spec,
        held_out[:0],
        train,
        held_out,
        train_labels=train_labels,
        held_out_labels=held_out_labels,
        seed=seed,
        peers=RankPeers(ranks, raise_if_stopped),
    )
    results = {}
    for name, metric in metrics:
        if metric.needs == "model" and model is not None:
            one = replace(whole, model=replace(model, key=name))
            results[name] = _measure_model(name, metric, one, settings, progress, raise_if_stopped)
    sampled = [(name, metric) for name, metric in metrics if metric.needs == "samples"]
    if drawn is not None:
        ours = whole.with_samples(drawn.x, drawn.labels)
        results |= measure_samples(sampled, ours, drawn, settings, raise_if_stopped)
    return {name: results[name] for name, _ in metrics}


@dataclass(frozen=True)
class RankPeers(Peers):
    """The processes of a run, which measure together; `raise_if_stopped` is called before each part of the work."""

    ranks: Ranks
    raise_if_stopped: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        return self.ranks.is_main

    def any(self, flag: bool) -> bool:
        return "1" in self.ranks.exchange(str(int(flag)))

    def in_order(self, compute: Callable[[int], Tensors], count: int) -> Iterator[Tensors]:
        def watched(number: int) -> Tensors:
            self.raise_if_stopped()
            return compute(number)

        return self.ranks.in_order(watched, count) if self.ranks.size > 1 else map(watched, range(count))


def refuse_unfit(task: str, metrics: Mapping[str, Metric], place: str) -> None:
    """Raise UsageError DK124 if a metric does not measure what a run of this task has.

    Args:
        task: The task.
        metrics: The metrics by name.
        place: The run, for the message.
    """
    for name, metric in metrics.items():
        if metric.needs not in MEASURES[task]:
            message = f"metric {name} measures {WORDS[metric.needs]}, which {place}, a {task} run, does not have"
            fix = f"choose a metric of {' or of '.join(WORDS[one] for one in MEASURES[task])}"
            raise UsageError(message, code="DK124", fix=fix)


def _measure_model(
    name: str,
    metric: Metric,
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    progress: bool,
    raise_if_stopped: Callable[[], None],
) -> MetricResult:
    """Apply a metric to the model on held-out data, and on training data in its place."""
    began, model = time.monotonic(), evaluation.model
    assert model is not None

    def measured(task: str, one: Evaluation, key: str) -> tuple[dict[str, float], dict[str, int]]:
        with console_progress(task, progress) as shown:
            of = 0

            def watch(done: int, total: int) -> None:
                nonlocal of
                raise_if_stopped()
                if total != of:
                    of = total
                    shown.start(done, total)
                shown.advance(done)

            found = dict(metric(replace(one, model=replace(model, key=key, watch=watch))))
        return found, {part: int(found.pop(part)) for part in COUNTS if part in found}

    values, counts = measured(name, evaluation, name)
    used = counts.get("held_out", len(evaluation.held_out))
    rows = torch.arange(min(MAX_TRAIN, used, len(evaluation.train)))
    rows = rows * len(evaluation.train) // len(rows)
    labels = None if evaluation.train_labels is None else evaluation.train_labels[rows]
    seen = replace(evaluation, held_out=evaluation.train[rows], held_out_labels=labels)
    train, _ = measured(f"{name} of training examples", seen, f"{name} of training examples")
    headline = next(iter(values))
    return MetricResult(
        headline=headline,
        values=finite(values),
        needs="model",
        train=finite(train),
        intervals=interval_of(headline, values),
        train_intervals=interval_of(headline, train),
        definition=metric.definition,
        reference=len(rows),
        held_out_count=used,
        dimension=math.prod(model.setting.spec.shape),
        lower_is_better=metric.lower_is_better,
        seed=evaluation.seed,
        seconds=time.monotonic() - began,
        **{key: settings[key] for key in ("weights", "step", "own") if key in settings},
    )


def interval_of(headline: str, values: Values) -> dict[str, Interval]:
    """Return the interval of the headline from its standard error; None without a standard error."""
    error = values.get(STANDARD_ERROR, math.nan)
    return {headline: interval(values[headline], error)} if 0 < error < math.inf else {}


def measure_samples(
    metrics: Sequence[tuple[str, Metric]],
    ours: Evaluation,
    drawn: SampleBatch,
    settings: Mapping[str, Any],
    raise_if_stopped: Callable[[], None],
) -> dict[str, MetricResult]:
    """Apply metrics to samples, and to as many real held-out examples in their place.

    Args:
        metrics: Names and metrics.
        ours: The evaluation with the samples.
        drawn: The samples, and what drawing them cost.
        settings: How they were drawn, by names of fields of `MetricResult`.
        raise_if_stopped: Called before each metric; an exception that it raises ends the evaluation.

    Returns:
        The results by name of the metric.
    """
    train, held_out, held_out_labels, seed = ours.train, ours.held_out, ours.held_out_labels, ours.seed
    count = min(len(drawn.x), len(held_out))
    real = ours.with_samples(held_out[:count], None if held_out_labels is None else held_out_labels[:count])
    budget = max(MIN_BUDGET, SAMPLING_SHARE * drawn.seconds)
    results = {}
    for name, metric in metrics:
        raise_if_stopped()
        began = time.monotonic()
        samples = Measured(name, "samples", metric, ours, budget)
        reals = Measured(name, "held-out", metric, real, budget) if count else None
        headline = next(iter(samples.values))
        ratio, ratio_interval = None, None
        if reals is not None and metric.limits is None:
            ratio, ratio_interval = _ratio(headline, samples, reals, metric.lower_is_better)
        results[name] = MetricResult(
            headline=headline,
            values=finite(samples.values),
            held_out={} if reals is None else finite(reals.values),
            intervals=samples.intervals,
            held_out_intervals={} if reals is None else reals.intervals,
            ratio=ratio,
            ratio_interval=ratio_interval,
            definition=metric.definition,
            protocol=dict(metric.protocol(ours)),
            samples=samples.counts.get("samples", len(drawn.x)),
            reference=samples.counts.get("reference", len(train)),
            held_out_count=0 if reals is None else reals.counts.get("samples", count),
            dimension=math.prod(ours.spec.shape),
            lower_is_better=metric.lower_is_better,
            limits=metric.limits,
            nfe=drawn.nfe or None,
            drawn=len(drawn.x),
            seed=seed,
            seconds=time.monotonic() - began,
            **settings,
        )
    return results


class Measured:
    """A metric of one set of samples: its values and their standard errors.

    The standard error of n samples is the standard deviation over random halves of them, times sqrt(h / (n - h)) for
    halves of h samples (delete-half jackknife): no sample occurs twice in a half, as it would in a bootstrap sample,
    which metrics of pairs and neighbours would count as agreement.
    Source: Shao & Wu 1989, doi:10.1214/aos/1176347263, sec. 2.
    """

    def __init__(self, name: str, role: str, metric: Metric, evaluation: Evaluation, budget: float) -> None:
        self.size, self.peers = len(evaluation.samples), evaluation.peers
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
        half, spent = self.size // 2, 0.0
        rows: list[Tensor] = []
        if half < MIN_HALF:
            return {}

        def resampled(number: int) -> Tensors:
            began = time.monotonic()
            order = torch.randperm(self.size, generator=generator("cpu", *stream, number))
            try:
                found = self.of_rows(order[:half])
            except DataError:  # the metric needs more samples than half of these
                return ()
            values = [found[key] for key in self.values]
            return (torch.tensor([time.monotonic() - began, *values], dtype=torch.float64),)

        for found in self.peers.in_order(resampled, resamples):
            if not found:
                return {}
            rows.append(found[0][1:])
            spent += float(found[0][0])
            if spent > budget or spent / len(rows) * MIN_RESAMPLES > budget:
                break
        if len(rows) < MIN_RESAMPLES:
            return {}
        scale = math.sqrt(half / (self.size - half))
        errors = {key: scale * float(one.std()) for key, one in zip(self.values, torch.stack(rows).T, strict=True)}
        return {key: e for key, e in errors.items() if 0 < e < math.inf and math.isfinite(self.values[key])}


def _ratio(
    headline: str, samples: Measured, reals: Measured, lower_is_better: bool | None
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


def finite(values: Values) -> dict[str, float | None]:
    """Replace numbers that are not finite by None, for JSON."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def examples(
    data: Data,
    part: Part,
    limit: int = MAX_EXAMPLES,
    *,
    label: str = LABEL,
    folder: Path | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor | None]:
    """Read examples, evenly spread over a part of the data.

    Args:
        data: The data set.
        part: "train" or "held-out".
        limit: Largest number of examples; default 50,000.
        label: Condition whose values are the labels; default `label`.
        folder: A folder for a file of the examples, so that they take no memory; default: they are in memory.
        ranks: The processes that read together, each a share. Each gets all examples.

    Returns:
        x (N, C, *S) float32 on the CPU in the model's range, and labels (N,) or None.

    Raises:
        ResourceError: The file cannot be written.
    """
    shape = min(limit, len(data.split(part))), *data.spec.shape
    path = None if folder is None else folder / f"{part}.f32"
    return join_blocks(example_blocks(data, part, limit, label=label, ranks=ranks), shape, path, ranks)


def example_blocks(
    data: Data, part: Part, limit: int = MAX_EXAMPLES, *, label: str = LABEL, ranks: Ranks = SINGLE_PROCESS
) -> Iterator[Tensors]:
    """Read the examples that `examples` returns, a few at a time.

    Args:
        data: The data set.
        part: "train" or "held-out".
        limit: Largest number of examples; default 50,000.
        label: Condition whose values are the labels; default `label`.
        ranks: The processes that read together, each a share. Each gets all examples.

    Returns:
        Blocks of x, each with its labels if there are labels.
    """
    split = data.split(part)
    count = min(limit, len(split))
    indices = (torch.arange(count) * len(split) // max(1, count)).tolist()
    rows = max(1, BLOCK_BYTES // (4 * math.prod(data.spec.shape)))

    def read(number: int) -> Tensors:
        raw, cond = stack(split, indices[number * rows : (number + 1) * rows])
        x = data.to_model_range(raw).float().cpu()
        return (x, cond[label].cpu()) if label in cond else (x,)

    return RankPeers(ranks).in_order(read, -(-count // rows))
