"""Laws of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from diffkit.data import DataSpec
from diffkit.metric import Evaluation, Metric

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law

COUNT = 200


def evaluation_of(case: Case) -> Evaluation:
    """Return an evaluation of two separate classes of vectors; all three sets have one distribution."""
    labels = torch.arange(COUNT) % 2
    centre = torch.stack([labels * 3.0 - 1.5, -labels.float()], 1)
    train, held_out, samples = (
        (centre + 0.5 * case.normal(COUNT, 2, stream=name)).float() for name in ("train", "held-out", "samples")
    )
    spec = DataSpec(2, classes=2)
    return Evaluation(spec, samples, train, held_out, labels, labels, labels, seed=case.seed)


def first_value(values: Mapping[str, float]) -> float:
    """Return the first value of a metric, its headline."""
    return float(next(iter(values.values())))


@law(
    "metric",
    statement="every value is a finite number, the same in each call, and torch's generator is not used",
    source="the definition of Metric",
    tolerance=0.0,
)
def repeatable(case: Case, result: LawResult) -> None:
    """Evaluation does not change training, and results can be reproduced."""
    metric: Metric = case.component
    evaluation, before = evaluation_of(case), torch.random.get_rng_state()
    first = metric(evaluation)
    result.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    result.holds(len(first) > 0 and bool(metric.definition), "no value, or no definition", "both")
    for name, value in first.items():
        result.holds(isinstance(value, float) and math.isfinite(value), f"{name} = {value!r}", "a finite float")
    again = metric(evaluation)
    result.holds(dict(first) == dict(again), f"{dict(again)}", f"{dict(first)}")


@law(
    "metric",
    statement="samples of the true distribution score better than shifted and widened ones",
    source="the definition of Metric",
    tolerance=0.0,
)
def ranks(case: Case, result: LawResult) -> None:
    """`lower_is_better` states the direction."""
    metric: Metric = case.component
    if metric.lower_is_better is None:
        raise NotApplicable("lower_is_better is None")
    evaluation = evaluation_of(case)
    good = first_value(metric(evaluation))
    bad = {
        "shifted by 4": evaluation.samples + torch.tensor([-4.0, 4.0]),
        "five times as wide": 5.0 * evaluation.samples,
    }
    for name, samples in bad.items():
        score = first_value(metric(replace(evaluation, samples=samples)))
        better = good < score if metric.lower_is_better else good > score
        result.holds(better, f"{name}: {score:.5g}, true law: {good:.5g}", "a worse value")


@law(
    "metric",
    statement="the value does not depend on the order of the examples",
    source="the definition of Metric",
    tolerance=1e-4,
)
def order_free(case: Case, result: LawResult) -> None:
    """A metric compares sets; labels are reordered together with their examples."""
    metric: Metric = case.component
    evaluation = evaluation_of(case)
    order = torch.randperm(COUNT, generator=case.generator("order"))
    moved = replace(evaluation, samples=evaluation.samples[order], sample_labels=_take(evaluation.sample_labels, order))
    result.compare(first_value(metric(moved)), first_value(metric(evaluation)), "the samples in another order")


def _take(labels: Tensor | None, order: Tensor) -> Tensor | None:
    return None if labels is None else labels[order]
