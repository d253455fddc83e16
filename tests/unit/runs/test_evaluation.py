"""Metrics of samples and of real data, and the intervals beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit import DataSpec, Evaluation, InMemorySplit, Metric
from diffkit.basics.metrics.frechet import Frechet
from diffkit.basics.metrics.mmd import MMD
from diffkit.basics.metrics.nearest_neighbour import NearestNeighbour
from diffkit.basics.metrics.sliced_wasserstein import SlicedWasserstein
from diffkit.data import Data, Part
from diffkit.errors import StoppedError
from diffkit.runs import evaluation
from diffkit.runs.evaluation import measure
from diffkit.runs.results import MetricResult
from diffkit.runs.sampling import SampleBatch


@dataclass(frozen=True)
class Normal(Data):
    """Standard normal vectors: 600 of the training part, 400 held out."""

    @property
    def spec(self) -> DataSpec:
        return DataSpec(3)

    def split(self, part: Part) -> InMemorySplit:
        count, seed = (600, 0) if part == "train" else (400, 1)
        return InMemorySplit(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class Mean(Metric):
    """Mean and variance of the first coordinate, whose standard errors are known."""

    definition = "mean"

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        x = evaluation.samples[:, 0].double()
        return {"mean": float(x.mean()), "variance": float(x.var()), "samples": float(len(x))}


def measured(metric: Metric, count: int = 400, shift: float = 5.0, seed: int = 0) -> MetricResult:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(2)) + shift
    batch = SampleBatch(x, {}, nfe=1, seconds=0.0)
    return measure([("m", metric)], Normal(), batch, settings={}, seed=seed)["m"]


def test_intervals_are_those_of_theory() -> None:
    """sd / sqrt(n) of a mean, sqrt(2 / n) of a variance; 40 halves know either within a third."""
    found = measured(Mean())
    for name, error in (("mean", 1 / math.sqrt(400)), ("variance", math.sqrt(2 / 400))):
        value, high = found.values[name], found.intervals[name].high
        assert value is not None
        assert (high - value) / 1.96 == pytest.approx(error, rel=0.34)
    assert found.samples == 400
    assert found.held_out_count == 400
    assert found.dimension == 3


def test_intervals_are_the_same_at_every_call_and_change_with_the_seed() -> None:
    one, again, other = measured(Mean()), measured(Mean()), measured(Mean(), seed=1)
    assert one.intervals == again.intervals
    assert one.intervals != other.intervals


def test_the_first_samples_are_not_copied() -> None:
    x, seen = torch.randn(6, 3), []

    @dataclass(frozen=True)
    class Pointer(Mean):
        def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
            seen.append(evaluation.samples)
            return {}

    of_rows = Pointer().prepare(Evaluation(DataSpec(3), x, x, x))
    for rows in (torch.arange(6), torch.arange(4), torch.tensor([3, 1])):
        of_rows(rows)
        assert torch.equal(seen[-1], x[rows])
    assert [one.data_ptr() == x.data_ptr() for one in seen] == [True, True, False]


def test_a_metric_stops_between_the_parts_of_its_work() -> None:
    done = []

    @dataclass(frozen=True)
    class Long(Mean):
        def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
            for _ in evaluation.peers.in_order(lambda number: (torch.tensor(done.append(number) is None),), 100):
                pass
            return {"mean": 0.0}

    def raise_if_stopped() -> None:
        if len(done) == 7:
            raise StoppedError("stopped")

    batch = SampleBatch(torch.zeros(4, 3), {}, 1, 0.0)
    with pytest.raises(StoppedError):
        measure([("m", Long())], Normal(), batch, settings={}, seed=0, raise_if_stopped=raise_if_stopped)
    assert done == list(range(7))


def test_the_ratio_compares_equal_counts() -> None:
    """800 samples against 400 held-out examples: the ratio is that of the first 400 samples."""
    large, small = measured(Frechet(), 800), measured(Frechet(), 400)
    assert large.ratio != pytest.approx(large.values["frechet"] / large.held_out["frechet"])
    batch = torch.randn(800, 3, generator=torch.Generator().manual_seed(2))[:400] + 5
    first = measure([("m", Frechet())], Normal(), SampleBatch(batch, {}, 1, 0.0), settings={}, seed=0)["m"]
    assert large.ratio == pytest.approx(first.ratio)
    assert small.ratio_interval is not None
    assert small.ratio_interval.low < small.ratio < small.ratio_interval.high


def test_a_metric_may_leave_intervals_out_and_a_slow_one_must(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Without(Mean):
        resamples: int = 0

    assert measured(Without()).intervals == {}
    monkeypatch.setattr(evaluation, "MIN_BUDGET", 0.0)
    slow = measured(Frechet())
    assert slow.intervals == {}
    assert slow.ratio is not None
    assert slow.ratio_interval is None


def test_too_few_samples_for_halves_leave_intervals_out() -> None:
    found = measured(Frechet(), count=7)
    assert found.values["frechet"] is not None
    assert found.intervals == {}


@pytest.mark.parametrize("metric", [Frechet(), SlicedWasserstein(), MMD(), NearestNeighbour()], ids=repr)
def test_prepared_rows_give_what_the_metric_gives(metric: Any) -> None:
    """`prepare` computes once what does not depend on the rows; the values are those of a direct call."""
    x, train, held_out = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (50, 70, 30))
    whole = Evaluation(DataSpec(3), x, train, held_out)
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:25]
    of_rows: Callable[[Tensor], Mapping[str, float]] = metric.prepare(whole)
    assert of_rows(rows) == pytest.approx(dict(metric(whole.with_samples(x[rows], None))), rel=1e-9)
