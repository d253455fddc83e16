"""Evaluation: metrics of samples, and beside each the same metric of real held-out examples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..data import Data
from ..metric import Evaluation, Metric
from .drawing import Drawn
from .examples import examples


def measure(metrics: Sequence[tuple[str, Metric]], data: Data, drawn: Drawn, sampler: str, seed: int) -> dict[str, Any]:
    """One record for each named metric, as results.json holds them.

    `values` are those of the samples against the training part; `held_out` those of as many held-out examples in
    their place, what a perfect model would get.
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
        began = time.monotonic()
        records[name] = {
            "values": _plain(metric(ours)),
            "held_out": _plain(metric(real)) if count else {},
            "definition": metric.definition,
            "samples": len(drawn.x),
            "reference": len(train),
            "lower_is_better": metric.lower_is_better,
            "nfe": drawn.nfe,
            "sampler": sampler,
            "seconds": time.monotonic() - began,
        }
    return records


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: what is not finite is null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
