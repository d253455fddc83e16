"""Evaluation: metrics of samples, and beside each the same metric of real held-out examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Data, InMemorySplit, Part, stack
from ..metric import Evaluation, Metric
from .sampling import SampleBatch

COUNTS = ("samples", "reference", "held_out")
"""Values of a metric by these names say how many examples it looked at, and stand in the record beside the values."""


def measure(
    metrics: Sequence[tuple[str, Metric]],
    data: Data,
    drawn: SampleBatch,
    sampler: str,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One record for each named metric, as results.json holds them; `headline` names the first of its values.

    `values` are those of the samples against the training part; `held_out` those of as many held-out examples in
    their place, what a perfect model would get. `check` is called before each metric; what it raises ends this.
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
    real = Evaluation(
        data.spec,
        held_out[:count],
        train,
        held_out,
        sample_labels=None if held_out_labels is None else held_out_labels[:count],
        train_labels=train_labels,
        held_out_labels=held_out_labels,
        seed=seed,
    )
    records: dict[str, Any] = {}
    for name, metric in metrics:
        check()
        began = time.monotonic()
        found, ideal = dict(metric(ours)), dict(metric(real)) if count else {}
        counts = {key: int(found.pop(key)) for key in COUNTS if key in found}
        records[name] = {
            "headline": next(iter(found)),
            "values": _plain(found),
            "held_out": _plain({key: value for key, value in ideal.items() if key in found}),
            "definition": metric.definition,
            "samples": counts.get("samples", len(drawn.x)),
            "reference": counts.get("reference", len(train)),
            "lower_is_better": metric.lower_is_better,
            "nfe": drawn.nfe,
            "sampler": sampler,
            "seconds": time.monotonic() - began,
        }
    return records


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: what is not finite is null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


LIMIT = 50_000
_CHUNK = 1024


def examples(data: Data, part: Part, limit: int = LIMIT) -> tuple[Tensor, Tensor | None]:
    """Up to `limit` examples of `part`, evenly spread over it: x (N, C, *S) float32 on the CPU, labels (N,) or None."""
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
