"""Laws of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from diffkit.data import DataSpec
from diffkit.metric import Evaluation, Metric

from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject

COUNT = 200


def _evaluation(subject: Subject) -> Evaluation:
    """Two classes of vectors apart from each other: training, held-out and good samples have one law."""
    labels = torch.arange(COUNT) % 2
    centre = torch.stack([labels * 3.0 - 1.5, -labels.float()], 1)
    train, held_out, samples = (
        (centre + 0.5 * subject.normal(COUNT, 2, stream=name)).float() for name in ("train", "held-out", "samples")
    )
    spec = DataSpec(2, classes=2)
    return Evaluation(spec, samples, train, held_out, labels, labels, labels, seed=subject.seed)


def _headline(values: Mapping[str, float]) -> float:
    return float(next(iter(values.values())))


@law(
    "metric",
    statement="every value is a finite number, the same each time, and torch's generator is not touched",
    source="the definition of Metric",
    tolerance=0.0,
)
def repeatable(subject: Subject, worst: Worst) -> None:
    """Evaluation never disturbs training, and a number can be found again."""
    metric: Metric = subject.component
    case, before = _evaluation(subject), torch.random.get_rng_state()
    first = metric(case)
    worst.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    worst.holds(len(first) > 0 and bool(metric.definition), "no value, or no definition", "both")
    for name, value in first.items():
        worst.holds(isinstance(value, float) and math.isfinite(value), f"{name} = {value!r}", "a finite float")
    again = metric(case)
    worst.holds(dict(first) == dict(again), f"{dict(again)}", f"{dict(first)}")


@law(
    "metric",
    statement="samples of the true law score better than shifted ones, widened ones and one point",
    source="the definition of Metric",
    tolerance=0.0,
)
def ranks(subject: Subject, worst: Worst) -> None:
    """The direction is the one that `lower_is_better` says."""
    metric: Metric = subject.component
    if metric.lower_is_better is None:
        raise Inapplicable("neither lower nor higher is better")
    case = _evaluation(subject)
    good = _headline(metric(case))
    bad = {
        "shifted by 4": case.samples + torch.tensor([-4.0, 4.0]),
        "five times as wide": 5.0 * case.samples,
    }
    for name, samples in bad.items():
        score = _headline(metric(replace(case, samples=samples)))
        better = good < score if metric.lower_is_better else good > score
        worst.holds(better, f"{name}: {score:.5g}, true law: {good:.5g}", "a worse value")


@law(
    "metric",
    statement="the order of the examples does not matter",
    source="the definition of Metric",
    tolerance=1e-4,
)
def order_free(subject: Subject, worst: Worst) -> None:
    """Sets are compared, not sequences; labels go with their examples."""
    metric: Metric = subject.component
    case = _evaluation(subject)
    order = torch.randperm(COUNT, generator=subject.generator("order"))
    moved = replace(case, samples=case.samples[order], sample_labels=_take(case.sample_labels, order))
    worst.compare(_headline(metric(moved)), _headline(metric(case)), "the samples in another order")


@law(
    "metric",
    statement="a distance of the training set to itself is 0",
    source="the definition of a distance",
    tolerance=1e-3,
    only=("frechet", "sliced-wasserstein", "mmd"),
)
def zero_at_identity(subject: Subject, worst: Worst) -> None:
    """Whatever random projections it draws."""
    case = _evaluation(subject)
    value = _headline(subject.component(replace(case, samples=case.train, sample_labels=case.train_labels)))
    worst.note(max(0.0, value), f"{value:.6g}", "0")


@law(
    "metric",
    statement="between Gaussians it is |m - m'|^2 + sum (s - s')^2 on common axes",
    source="Dowson & Landau 1982, eq. 4",
    tolerance=1e-4,
    only=("frechet",),
)
def frechet_gaussian(subject: Subject, worst: Worst) -> None:
    """Samples are made to have exactly the moments told, so no sampling error remains."""
    case = _evaluation(subject)
    z = subject.normal(COUNT, 2, stream="z")
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    for m, s in ((torch.zeros(2), torch.tensor([1.0, 2.0])), (torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))):
        train, samples = (z * torch.tensor([1.0, 2.0])).float(), (m + z * s).float()
        want = float(m.square().sum() + (s - torch.tensor([1.0, 2.0])).square().sum())
        got = _headline(subject.component(replace(case, spec=DataSpec(2), train=train, samples=samples)))
        worst.compare(got, want, f"mean {m.tolist()}, deviations {s.tolist()}", 1.0)


@law(
    "metric",
    statement="a shift by c moves every projection: the distance is that of one point moved by c",
    source="Bonneel et al. 2015, eq. 5",
    tolerance=0.1,
    only=("sliced-wasserstein",),
)
def wasserstein_shift(subject: Subject, worst: Worst) -> None:
    """Mean over directions u of |u . c|^p to the power 1 / p, which for p = 2 in D dimensions is |c| / sqrt(D)."""
    case = _evaluation(subject)
    c = torch.tensor([3.0, 0.0])
    got = _headline(subject.component(replace(case, samples=case.train + c, sample_labels=case.train_labels)))
    near = min(abs(got / 3.0 * 2.0**0.5 - 1.0), abs(got / 9.0 * 2.0 - 1.0))
    worst.note(near, f"{got:.5g} for a shift by 3 in the plane", "3 / sqrt 2, or its square")


def _take(labels: Tensor | None, order: Tensor) -> Tensor | None:
    return None if labels is None else labels[order]
