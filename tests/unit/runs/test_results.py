"""results.json and stages.json as typed records, and the rule of the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffkit.errors import CheckpointError
from diffkit.runs.results import (
    EvaluationResult,
    Interval,
    LossByLevel,
    MetricResult,
    StageRecord,
    StageStatus,
    interval,
    ratio_of,
)
from diffkit.storage.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def result(low: float = 1.0, high: float = 1.2, **changed: Any) -> MetricResult:
    """A metric of 512 samples of 64 values whose ratio to real data lies in [low, high]."""
    common: dict[str, Any] = {
        "headline": "m",
        "values": {"m": 1.1},
        "held_out": {"m": 1.0},
        "intervals": {"m": Interval(1.0, 1.2)},
        "ratio": (low + high) / 2,
        "ratio_interval": Interval(low, high),
        "samples": 512,
        "held_out_count": 300,
        "dimension": 64,
    }
    return MetricResult(**common | changed)


def verdict(*results: MetricResult) -> str:
    found = EvaluationResult(metrics={f"m{k}": one for k, one in enumerate(results)}).verdict
    assert found is not None
    return found.text


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([result(), result()], "On par with real data, by 2 measures."),
        ([result(), result(1.2, 1.6)], "Close to real data, by 2 measures."),
        ([result(1.1, 1.9), result()], "Close to real data, by 2 measures."),
        ([result(1.5, 2.5), result(1.2, 1.9)], "Apart from real data, by 2 measures."),
        ([result(6, 9), result(4, 7)], "Far from real data, by 2 measures."),
        ([result(1, 1.1), result(2.5, 4)], "No verdict, since the measures disagree"),
        ([result(1, 1.1), result(1.0, 3.0)], "Too uncertain for a verdict: by m1 the samples are on par"),
        ([result()], "One measure (m0) is too few for a verdict"),
        ([result(), result(samples=255)], "One measure (m0) is too few for a verdict"),
        ([result(samples=16), result()], "Too few samples for a verdict: 16, at least 256 are needed for"),
        ([result(held_out_count=99), result()], "Too few held-out examples for a verdict: 99, at least 256"),
        ([result(dimension=2, samples=99), result()], "Too few samples for a verdict: 99, at least 100 are needed."),
        ([result(dimension=10**6, samples=9999), result()], "Too few samples for a verdict: 9,999, at least 10,000"),
        ([result(ratio_interval=None), result()], "No verdict: the uncertainty of m0 against real data is not known."),
        ([result(dimension=None), result()], "No verdict: these results have no intervals"),
        ([result(held_out={}), result()], "No verdict: m0 was not measured on real held-out data."),
    ],
)  # fmt: skip
def test_a_verdict_is_given_only_if_the_counts_carry_it(results: list[MetricResult], text: str) -> None:
    assert verdict(*results).startswith(text)


def test_a_metric_with_limits_is_graded_by_its_own_value() -> None:
    """The two-sample classifier at .70 contradicts "close", whatever the Frechet distance."""
    judge = result(values={"m": 0.7}, intervals={}, ratio=None, ratio_interval=None, limits=(0.55, 0.65, 0.8))
    assert verdict(result(1.3, 1.6), judge) == "Apart from real data, by 2 measures."
    assert verdict(result(1.0, 1.1), judge).startswith("No verdict, since the measures disagree")


def test_nothing_measured_gives_no_verdict() -> None:
    assert EvaluationResult().verdict is None


def test_intervals_hold_their_value_and_stay_positive() -> None:
    assert interval(1.0, 0.1) == pytest.approx((1 / 1.196, 1.196))
    assert interval(-1.0, 0.1) == pytest.approx((-1.196, -0.804))
    low, high = interval(0.001, 1.0)
    assert 0 < low < 0.001 < high


@pytest.mark.parametrize(
    ("value", "real", "lower", "ratio"),
    [(3, 2, True, 1.5), (2, 3, False, 1.5), (2, 3, None, 1.5), (3, 2, None, 1.5), (-1, 2, True, None)],
)
def test_ratios_say_how_many_times_worse(value: float, real: float, lower: bool | None, ratio: float | None) -> None:
    assert ratio_of(value, real, lower) == ratio


def test_results_survive_the_file(directory: RunDirectory) -> None:
    written = EvaluationResult(metrics={"b": result(values={"m": None, "n": 2.0}), "a": result(limits=(1.0, 2.0, 3.0))})
    written.write(directory)
    assert EvaluationResult.read(directory) == written
    assert list(EvaluationResult.read(directory).in_order(["b"]).metrics) == ["b", "a"]


@pytest.mark.parametrize(
    "damaged", [{"metrics": []}, {"metrics": {"a": 3}}, {"metrics": {"a": {"headline": "m", "values": {"m": "x"}}}}]
)
def test_damaged_results_are_named(directory: RunDirectory, damaged: dict[str, Any]) -> None:
    directory.write_json("results.json", damaged)
    with pytest.raises(CheckpointError, match=r"results.json is damaged: metrics"):
        EvaluationResult.read(directory)


def test_stages_survive_the_file_and_training_time_adds_up(directory: RunDirectory) -> None:
    status = StageStatus(directory)
    by_level = LossByLevel(level=(0.5, 1.5), loss=(1.0, 2.0))
    status.write("report", StageRecord(step=4, seconds=1.0))
    status.write("train", StageRecord(step=4, seconds=2.0))
    last = StageRecord(step=8, seconds=3.0, held_out_loss=0.5, loss_by_level=by_level)
    status.write("train", last)
    assert status.read() == {
        "train": last.model_copy(update={"seconds": 5.0}),
        "report": StageRecord(step=4, seconds=1.0),
    }
    assert list(status.seconds()) == ["train", "report"]
    assert status.done("train", 8)
    assert not status.done("report", 8)


def test_damaged_stages_are_named(directory: RunDirectory) -> None:
    directory.write_json("stages.json", {"train": {"step": "four"}})
    with pytest.raises(CheckpointError, match=r"stages.json is damaged"):
        StageStatus(directory).read()


def test_a_casual_result_never_replaces_that_of_the_recipe() -> None:
    """Results are kept by weights, sampler, steps, count, seed and training step; equal ones replace each other."""
    own = result(weights="ema", steps=50, drawn=512, seed=0, step=100)
    casual = result(values={"m": 9.0}, weights="raw", steps=50, drawn=16, seed=0, step=100, own=False)
    found = EvaluationResult().updated({"m": own}).updated({"m": casual})
    assert found.metrics == {"m": own}
    assert found.others == {"m": (casual,)}
    again = casual.model_copy(update={"values": {"m": 8.0}})
    assert found.updated({"m": again}).others == {"m": (again,)}
    seeds = found.updated({"m": casual.model_copy(update={"seed": 1})})
    assert [one.seed for one in seeds.others["m"]] == [0, 1]
    later = own.model_copy(update={"step": 200})
    assert seeds.updated({"m": later}).metrics == {"m": later}
    assert own in seeds.updated({"m": later}).others["m"]
    assert found.updated({"m": own}) == found


def test_the_result_of_the_recipe_takes_the_headline_back() -> None:
    casual, own = result(values={"m": 9.0}, drawn=16, own=False), result(drawn=512)
    found = EvaluationResult().updated({"m": casual})
    assert found.metrics["m"] == casual
    found = found.updated({"m": own})
    assert (found.metrics["m"], found.others["m"]) == (own, (casual,))


def test_a_verdict_mixes_no_samples_that_were_drawn_in_different_ways() -> None:
    assert (
        verdict(result(), result(weights="raw")) == "One measure (m0) is too few for a verdict; at least 2 are needed."
    )
