"""Runs that draw no samples: reconstructions, statistics of codes, metrics of codecs and of classifiers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..data import LABEL, Data, stack
from ..errors import DataError
from ..metric import Evaluation, Metric, Tensors, TrainedClassifier
from ..recipe.assembly import ClassifierParts, Parts
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..storage import atomic
from ..storage.atomic import damaged_file
from ..storage.run_directory import GRID
from .evaluation import (
    MAX_EXAMPLES,
    MAX_TRAIN,
    MIN_BUDGET,
    Measured,
    RankPeers,
    examples,
    finite,
    interval_of,
    measure_samples,
)
from .results import RECONSTRUCTIONS, MetricResult
from .sample_files import FIX, Array, has_pictures, join_blocks, load_npz, pixels, save_npz, save_png, scratch_folder
from .sampling import SampleBatch

FILE = "reconstructions.npz"
MAX_SHOWN, MAX_MEASURED = 32, 512
"""Examples whose pictures are shown, and those whose codes are measured."""
BATCH = 64
"""Examples at a time, if `evaluate.batch_size` does not state it."""
BINS, COLUMNS = 60, 8


def shown_examples(parts: Parts, count: int) -> Tensor:
    """Return up to `count` evenly spread held-out examples, (N, C, *S) in the model's range; training ones if none are
    held out.
    """
    data = parts.data
    split = data.split("held-out")
    split = split if len(split) else data.split("train")
    count = min(count, len(split))
    raw, _ = stack(split, [index * len(split) // count for index in range(count)])
    return data.to_model_range(raw).float()


@torch.no_grad()
def reconstruct(
    codec: Codec,
    x: Tensor,
    device: torch.device,
    batch_size: int = BATCH,
    raise_if_stopped: Callable[[], None] = lambda: None,
    path: Path | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Tensor:
    """Decode the means of the posteriors of examples.

    Args:
        codec: The codec, in evaluation mode.
        x: Examples in the model's range: (N, C, *S).
        device: Its device.
        batch_size: Examples at a time; default 64.
        raise_if_stopped: Called before each batch; an exception that it raises ends the work.
        path: A file for the result, so that it takes no memory; default: it is in memory.
        ranks: The processes that share the batches. Each gets the whole result.

    Returns:
        (N, C, *S) float32 on the CPU.
    """
    parts = torch.split(x, batch_size)

    def decoded(number: int) -> Tensors:
        raise_if_stopped()
        return (codec.decode(codec.encode(parts[number].to(device))).float().cpu(),)

    return join_blocks(RankPeers(ranks).in_order(decoded, len(parts)), x.shape, path, ranks)[0]


@dataclass(frozen=True, eq=False)
class CodeStatistics:
    """Statistics of the C channels of codes over examples and positions, float64.

    mean, std   of the codes: (C,)
    kl          divergence of the posterior from N(0, 1) in nats for each dimension: (C,); None without posterior
    histogram   density of the codes: (C, BINS), between the `edges`: (BINS + 1,)
    """

    mean: Array
    std: Array
    kl: Array | None
    histogram: Array
    edges: Array


@torch.no_grad()
def code_statistics(codec: Codec, x: Tensor, device: torch.device, batch_size: int = BATCH) -> CodeStatistics:
    """Return statistics of the codes of examples; those of a posterior are of its mean, and of its std for `kl`.

    Args:
        codec: The codec, in evaluation mode.
        x: Examples in the model's range: (N, C, *S).
        device: Its device.
        batch_size: Examples at a time; default 64.

    Returns:
        The statistics.
    """
    posteriors = [codec.posterior(part.to(device)) for part in torch.split(x, batch_size)]
    means = torch.cat([_by_channel(one.mean) for one in posteriors], 1)
    kl = None
    if posteriors[0].std is not None:
        stds = torch.cat([_by_channel(one.std) for one in posteriors if one.std is not None], 1)
        kl = (0.5 * (means.square() + stds.square() - 1.0) - stds.log()).mean(1).numpy()
    low, high = np.quantile(means.numpy(), [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    histogram = np.stack([np.histogram(row, edges, density=True)[0] for row in means.numpy()])
    return CodeStatistics(means.mean(1).numpy(), means.std(1).numpy(), kl, histogram, edges)


def _by_channel(values: Tensor) -> Tensor:
    """Return values (B, C, *S) as rows of one channel, (C, B prod S) float64 on the CPU."""
    return values.transpose(0, 1).flatten(1).double().cpu()


def reconstruct_and_save(parts: Parts, directory: Path, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> Path:
    """Reconstruct held-out examples; write reconstructions.npz with statistics of their codes, and a picture grid.png.

    Args:
        parts: The objects of the recipe, with a trained codec in evaluation mode.
        directory: The folder of the files.
        device: Device to compute on.
        ranks: The processes that share the examples; the first one writes the files.

    Returns:
        The file to look at: grid.png (examples, reconstructions, differences), else reconstructions.npz.

    Raises:
        ResourceError: The files cannot be written.
    """
    data, size = parts.data, parts.recipe.evaluate.batch_size or BATCH
    measured = shown_examples(parts, MAX_MEASURED)
    made = reconstruct(parts.codec, measured, device, size, ranks=ranks)
    with ranks.together():
        if ranks.is_main:
            found = code_statistics(parts.codec, measured, device, size)
            x, made = measured[:MAX_SHOWN], made[:MAX_SHOWN]
            statistics = {name: value for name, value in vars(found).items() if value is not None}
            arrays = {"x": pixels(data, x), "view": pixels(data, made), **statistics}
            with atomic.writing(directory, FIX):
                directory.mkdir(exist_ok=True)
                save_npz(directory / FILE, arrays)
                if has_pictures(data):
                    columns = min(COLUMNS, len(x))
                    save_png(directory / GRID, data, in_rows(x, made, columns), columns=columns)
    return directory / (GRID if has_pictures(data) else FILE)


def in_rows(x: Tensor, made: Tensor, columns: int) -> Tensor:
    """Arrange examples and reconstructions for a picture.

    Args:
        x: Examples: (N, C, *S).
        made: Their reconstructions.
        columns: Examples in a row; those of a shorter last row are left out.

    Returns:
        Rows of examples, each followed by a row of reconstructions and one of the differences: (M, C, *S).
    """
    rows = zip(torch.split(x, columns), torch.split(made, columns), strict=True)
    return torch.cat([torch.cat([one, two, (two - one).clamp(-1, 1)]) for one, two in rows if len(one) == columns])


def load_reconstructions(directory: Path) -> dict[str, Array] | None:
    """Return the arrays of reconstructions.npz in a folder; None without the file.

    Raises CheckpointError if the file is damaged.
    """
    if not os.path.lexists(directory / FILE):
        return None
    stored = load_npz(directory / FILE)
    names = ("x", "view", "mean", "std", "histogram", "edges")
    if all(name in stored and stored[name].size for name in names):
        x, view, mean, std, histogram, edges = (stored[name] for name in names)
        kl = stored.get("kl", mean)
        pictures = x.shape == view.shape and x.dtype == view.dtype and x.ndim in (2, 4)
        channels = mean.shape == std.shape == kl.shape == (len(histogram),)
        if pictures and channels and histogram.shape[1:] == (len(edges) - 1,):
            return stored
    raise damaged_file(f"{FILE} holds no reconstructions")


def require_held_out(data: Data) -> None:
    """Raise DataError DK300 if no example is held out for the metrics of a codec or a classifier."""
    if not len(data.split("held-out")):
        raise DataError("no example is held out, so nothing can be measured", fix="hold some out, or drop metrics")


def measure_held_out(
    metrics: Sequence[tuple[str, Metric]],
    parts: Parts,
    device: torch.device,
    count: int | None,
    seed: int,
    settings: Mapping[str, Any],
    place: Path,
    raise_if_stopped: Callable[[], None] = lambda: None,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, MetricResult]:
    """Apply metrics to the outputs of a codec or a classifier for held-out and, beside them, for training examples.

    Args:
        metrics: Names and metrics.
        parts: The objects of the recipe, with trained weights.
        device: The device of the weights.
        count: Number of held-out examples; None: that of the recipe, else all.
        seed: Seed of the random choices of metrics, of noise, and of the intervals.
        settings: The weights, by names of fields of `MetricResult`, for the record.
        place: A folder for temporary files of examples.
        raise_if_stopped: Called before each batch and metric; an exception that it raises ends the evaluation.
        ranks: The processes that measure together; each of them gets the same results.

    Returns:
        The results by name of the metric.

    Raises:
        DataError: No example is held out.
    """
    data, recipe = parts.data, parts.recipe
    wanted, size = count or recipe.evaluate.count or MAX_EXAMPLES, recipe.evaluate.batch_size or BATCH
    own = settings["own"] and seed == recipe.seed and count in (None, recipe.evaluate.count)
    predicted = parts.condition if isinstance(parts, ClassifierParts) else LABEL
    require_held_out(data)
    with scratch_folder(place, ranks) as folder:
        held_out, labels = examples(
            data, "held-out", min(wanted, MAX_EXAMPLES), label=predicted, folder=folder, ranks=ranks
        )
        sampled = [(name, metric) for name, metric in metrics if metric.needs == "samples"]
        train, train_labels = examples(
            data, "train", MAX_EXAMPLES if sampled else MAX_TRAIN, label=predicted, folder=folder, ranks=ranks
        )
        peers = RankPeers(ranks, raise_if_stopped)
        ours = Evaluation(data.spec, held_out, train, held_out, labels, train_labels, labels, seed=seed, peers=peers)
        rows = torch.arange(min(MAX_TRAIN, len(train))) * len(train) // min(MAX_TRAIN, len(train))
        seen, seen_labels = train[rows], None if train_labels is None else train_labels[rows]
        beside = replace(ours.with_samples(seen, seen_labels), held_out=seen, held_out_labels=seen_labels)
        began = time.monotonic()
        if isinstance(parts, ClassifierParts):
            trained = TrainedClassifier(parts.classifier, parts.codec, device, size)
            ours, beside = replace(ours, classifier=trained), replace(beside, classifier=trained)
        else:
            path = folder / "reconstructions.f32"
            made = reconstruct(parts.codec, held_out, device, size, raise_if_stopped, path, ranks)
            made_beside = reconstruct(parts.codec, seen, device, size, raise_if_stopped, ranks=ranks)
            ours = replace(ours, samples=made, references=held_out)
            beside = replace(beside, samples=made_beside, references=seen)
        stated = {**settings, "own": own}
        drawn = SampleBatch(ours.samples, {} if labels is None else {LABEL: labels}, 0, time.monotonic() - began)
        in_words = {"sampler": RECONSTRUCTIONS}
        results = measure_samples(sampled, ours, drawn, in_words | stated, raise_if_stopped)
        for name, metric in metrics:
            if name not in results:
                raise_if_stopped()
                results[name] = _measure_beside(name, metric, ours, beside, stated)
    return {name: results[name] for name, _ in metrics}


def _measure_beside(
    name: str, metric: Metric, ours: Evaluation, beside: Evaluation, settings: Mapping[str, Any]
) -> MetricResult:
    """Apply a metric of pairs or of a classifier to held-out examples, and to training examples in their place."""
    began, values, intervals = time.monotonic(), [], []
    for role, one in (("held-out", ours), ("train", beside)):
        if metric.needs == "pairs":
            measured = Measured(name, role, metric, one, MIN_BUDGET)
            values.append(measured.values)
            intervals.append(measured.intervals)
        else:
            values.append(dict(metric(one)))
            intervals.append(interval_of(next(iter(values[-1])), values[-1]))
    return MetricResult(
        headline=next(iter(values[0])),
        values=finite(values[0]),
        needs=metric.needs,
        train=finite(values[1]),
        intervals=intervals[0],
        train_intervals=intervals[1],
        definition=metric.definition,
        protocol=dict(metric.protocol(ours)),
        reference=len(beside.held_out),
        held_out_count=len(ours.held_out),
        dimension=math.prod(ours.spec.shape),
        lower_is_better=metric.lower_is_better,
        drawn=len(ours.held_out),
        seed=ours.seed,
        seconds=time.monotonic() - began,
        **settings,
    )
