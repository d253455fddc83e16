"""The report of real runs: what it shows, what it leaves out, and that nothing untrusted becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffkit import Run
from diffkit.report import (
    Citation,
    EffectiveRow,
    Neighbours,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
    build_report,
)
from diffkit.report.wording import figure
from diffkit.runs.reporting import collect
from diffkit.runs.results import EvaluationResult, MetricResult, StageStatus
from diffkit.storage.jsonl import read_records
from diffkit.storage.run_directory import RunDirectory

HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x00\u202e\ud800"
ALLOWED = {"html", "head", "meta", "title", "link", "style", "body", "a", "nav", "main", "header", "footer", "section"}
ALLOWED |= {
    "p",
    "span",
    "ul",
    "ol",
    "li",
    "h1",
    "h2",
    "h3",
    "h4",
    "dl",
    "dt",
    "dd",
    "div",
    "figure",
    "figcaption",
    "img",
}
ALLOWED |= {
    "svg",
    "g",
    "path",
    "line",
    "text",
    "title",
    "circle",
    "rect",
    "image",
    "table",
    "caption",
    "thead",
    "tbody",
}
ALLOWED |= {"tfoot", "tr", "th", "td", "pre", "code", "button", "details", "summary", "script"}


KINDS = ("images", "points")


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def run(real_runs, kind) -> Run:
    return real_runs[kind]


@pytest.fixture
def full(real_inputs, kind) -> ReportInputs:
    return real_inputs[kind]


def sections(page) -> list[str]:
    return [one["id"] for one in page.all("section")]


def series(page) -> dict[str, dict[str, list[float]]]:
    """x and y of every line that the charts of a page list, by name."""
    charts = [json.loads(one["data-plot"]) for one in page.all("div") if "data-plot" in one]
    return {line["name"]: line for chart in charts for line in chart["series"]}


def test_a_full_report_is_valid_and_has_every_part(full, kind, read):
    page = read(build_report(full))
    every = ["samples", "metrics", "neighbours", "trajectory", "training", "schedule", "recipe", "record", "references"]
    every.append("glossary")
    assert sections(page) == [name for name in every if kind == "images" or name != "neighbours"]
    assert {name for name, _ in page.tags} <= ALLOWED
    assert len(page.all("h1")) == 1


def test_the_file_of_the_run_is_this_report(run, full, read):
    written, again = (read(text) for text in ((run.directory.path / "report.html").read_text(), build_report(full)))
    assert sections(written) == sections(again)
    assert series(written) == series(again)


def test_nothing_is_loaded_from_outside(full, read):
    text = build_report(full)
    for name, attributes in read(text).tags:
        for key in ("src", "href"):
            value = attributes.get(key)
            allowed = ("data:", "#", "https://") if name == "a" else ("data:", "#")  # a link loads nothing by itself
            assert value is None or value.startswith(allowed), (name, value)
        assert "style" not in attributes
        assert not any(key.startswith("on") for key in attributes)


def test_every_picture_is_a_readable_png_with_a_text_alternative(full, kind, read):
    page = read(build_report(full))
    pictures = page.all("img") + page.all("image")
    assert len(pictures) == (2 + 2 + 12 + 2 if kind == "images" else 2 + 2 + 6 + 6)
    for attributes in pictures:
        address = attributes.get("src") or attributes.get("href")
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            image.load()
            if "src" in attributes:
                assert (str(image.width), str(image.height)) == (attributes["width"], attributes["height"])
    assert all(one["alt"].strip() for one in page.all("img"))
    charts = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
    assert len(charts) == (6 if kind == "images" else 6 + 2 + 2 + 12)
    assert all(one["role"] == "img" and one["aria-label"].strip() for one in charts)


def test_the_head_has_the_verdict_and_the_key_figures(run, full, kind, read):
    words = read(build_report(full)).words
    name, first = next(iter(run.results.metrics.items()))
    value, real = first.values["frechet"], first.held_out["frechet"]
    assert name == "frechet", "the first metric of the recipe, although results.json is sorted"
    assert f"{name}: {figure(value)} (real held-out data: {figure(real)})." in words
    assert run.results.verdict.text in words
    if kind == "images":
        assert "Too few samples for a verdict: 16, at least 256 are needed for examples of 64 values." in words
    assert f"parameters was trained on {full.data_name} for 40 steps in " in words
    assert "the terminal SNR is" in words


def test_every_value_stands_beside_its_interval_and_that_of_real_data(run, full, read):
    words = read(build_report(full)).words
    for result in run.results.metrics.values():
        for values, intervals in ((result.values, result.intervals), (result.held_out, result.held_out_intervals)):
            assert result.headline in intervals
            for key, (low, high) in intervals.items():
                assert f"{figure(values[key])}  [{figure(low)}, {figure(high)}]" in words
        assert f"{result.samples} samples against {result.reference} training examples" in words
    assert "A verdict needs at least 4 samples and 4 held-out examples for each value of an example" in words


def test_series_have_the_names_of_what_they_show(run, full, read):
    page = read(build_report(full))
    found, rows = series(page), list(read_records(run.directory.metrics))
    by_level = StageStatus(run.directory).read()["train"].loss_by_level
    assert found["Held-out loss"]["y"] == pytest.approx(list(by_level.loss), rel=1e-4)
    assert found["Held-out loss"]["x"] == pytest.approx(list(by_level.level), rel=1e-4)
    assert "Held-out loss by noise level" in page.words
    for name, key in (
        ("Training", "loss"),
        ("Held-out, raw", "held_out_loss"),
        ("Held-out, average", "held_out_loss_ema"),
        ("Gradient norm", "grad_norm"),
        ("Learning rate", "lr"),
    ):
        want = {row["step"]: row[key] for row in rows if key in row}
        assert dict(zip(found[name]["x"], found[name]["y"], strict=True)) == pytest.approx(want, rel=1e-4), name


def test_a_positive_loss_by_noise_level_has_a_log_scale(full, read):
    loss = full.loss_by_level.loss
    for values, log in ((loss, True), (tuple(v - 10 for v in loss), False)):
        changed = full.loss_by_level.model_copy(update={"loss": values})
        page = read(build_report(ReportInputs(loss_by_level=changed)))
        ticks = [float(text.replace("−", "-")) for tag, text in page.texts if tag == "text" and text != "t"]
        assert any(tick < 0 for tick in ticks) != log
        assert (ticks.count(0) <= 1) or not log


def test_a_resumed_run_shows_where_it_was_resumed(full, read):
    page = read(build_report(full))
    assert "resumed at step 30" in page.words
    steps = series(page)["Training"]["x"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_divergence_overrules_every_result(full, read):
    rows = [*full.training_log, {"step": 42, "loss": None}]
    words = read(build_report(dataclasses.replace(full, training_log=rows))).words
    assert "Training diverged: the loss is not finite from step 42 on." in words
    assert "Steps whose loss was not finite: 1." in words
    assert f"{full.verdict} frechet" not in words


def test_results_of_an_earlier_version_have_no_verdict(run, read):
    """results.json before intervals: values, held-out values and counts."""
    new = run.results.metrics["frechet"]
    names = ("headline", "values", "held_out", "definition", "samples", "reference", "nfe", "sampler")
    results = EvaluationResult(metrics={"frechet": MetricResult(**{name: getattr(new, name) for name in names})})
    page = read(build_report(ReportInputs(results=results.metrics, verdict=results.verdict.text)))
    assert "these results have no intervals; measure again with `diffkit evaluate`" in page.words
    assert "intervals are not available" in page.words


def test_a_run_that_was_stopped_lists_what_is_missing(run, read, tmp_path):
    copy = shutil.copytree(run.directory.path, tmp_path / "stopped")
    shutil.rmtree(copy / "samples")
    for name in ("results.json", "report.html", "stages.json"):
        (copy / name).unlink()
    page = read(build_report(collect(RunDirectory(copy), run.assembly)))
    assert "Trained, not yet measured." in page.words
    assert f"Not in this report: samples: diffkit sample {copy}; metrics: diffkit evaluate {copy}." in page.words
    assert "metrics" not in sections(page)


def test_an_empty_run_still_gives_a_page(read):
    page = read(build_report(ReportInputs()))
    assert sections(page) == []
    assert "This run has no results yet." in page.words


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(ReportInputs)])
def test_each_field_may_be_absent_and_may_be_alone(full, field, read):
    empty = getattr(ReportInputs(), field)
    read(build_report(dataclasses.replace(full, **{field: empty})))
    read(build_report(ReportInputs(**{field: getattr(full, field)})))


def test_hostile_texts_everywhere_stay_texts(real_inputs, read):
    full = real_inputs["images"]
    entry = MetricResult(
        headline=HOSTILE, values={HOSTILE: 1.0}, held_out={HOSTILE: 2.0}, definition=HOSTILE, sampler=HOSTILE
    )
    hostile = dataclasses.replace(
        full,
        **dict.fromkeys(("title", "data_name", "sampling", "hardware", "created", "verdict", "verdict_rule"), HOSTILE),
        recipe_yaml=f"{HOSTILE}\n{HOSTILE}: 1 # {HOSTILE}\nname: {HOSTILE}",
        effective=[EffectiveRow(HOSTILE, HOSTILE, HOSTILE)],
        environment={HOSTILE: HOSTILE, "group": {HOSTILE: [HOSTILE], "deep": {HOSTILE: {HOSTILE: HOSTILE}}}},
        events=[{"time": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE, "step": HOSTILE}],
        training_log=[{"step": 1, "loss": HOSTILE}, {"step": HOSTILE, "loss": 1.0}],
        results={HOSTILE: entry},
        stage_seconds={HOSTILE: 3.0},
        trajectory=dataclasses.replace(full.trajectory, labels=[HOSTILE] * 12),
        citations=[Citation(HOSTILE, HOSTILE, HOSTILE)],
        missing=[HOSTILE],
    )
    text = build_report(hostile)
    text.encode("utf-8")
    page = read(text)
    assert {name for name, _ in page.tags} <= ALLOWED
    assert len(page.all("script")) == 1
    assert "<script>alert" not in text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "<script>alert(1)</script>" in page.words
    assert "\x00" not in text
    assert "\u202e" not in text


def test_schedule_that_ends_in_pure_noise_and_one_that_starts_with_none(read):
    t = np.linspace(0, 1, 11)
    page = read(build_report(ReportInputs(schedule=ScheduleCurves(t, 1 - t, t))))
    assert "the terminal SNR is exactly 0" in page.words
    page = read(
        build_report(ReportInputs(schedule=ScheduleCurves(t, np.ones(11), 0.01 + 80 * t, np.array([1.0, 0.0]))))
    )
    assert "the 2 times that the sampler visits" in page.words
    page = read(build_report(ReportInputs(schedule=ScheduleCurves(t, np.ones(11), np.zeros(11)))))
    assert "there is no noise" in page.words


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_vectors_of_any_dimension(dimensions, read):
    rng = np.random.default_rng(0)
    samples, real = (rng.standard_normal((200, dimensions)) for _ in range(2))
    page = read(build_report(ReportInputs(samples=samples, real=real, snapshots=[Snapshot(5, samples)])))
    assert "samples" in sections(page)
    assert ("first two of 5 coordinates" in page.words) == (dimensions == 5)
    assert ("Distribution" in page.words) == (dimensions == 1)


def test_constant_and_broken_vectors_do_no_harm(read):
    for samples in (
        np.ones((5, 1)),
        np.full((5, 2), np.nan),
        np.full((5, 1), np.inf),
        np.zeros((3, 0)),
        np.zeros((0, 2)),
    ):
        read(build_report(ReportInputs(samples=samples, real=samples)))


def test_pictures_of_three_channels_and_uneven_counts(read):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 20, 3), dtype=np.uint8)
    page = read(
        build_report(
            ReportInputs(
                samples=images,
                real=images[:2],
                neighbours=Neighbours(images, images[:3]),
                trajectory=Trajectory(images[None], None),
                snapshots=[Snapshot(1, images[:0]), Snapshot(2, images)],
            )
        )
    )
    assert len(page.all("img")) == 2 + 1 + 3 + 1
    assert "5 images of 20 × 12 pixels" in page.words


def test_the_recipe_is_shown_to_the_letter(read):
    recipe = "name: a  # why\nlist:\n  - key: 'x # y'\n    odd line\n"
    text = build_report(ReportInputs(recipe_yaml=recipe))
    shown = re.search(r'<code id="recipe-text">(.*?)</code>', text, re.S)[1]
    shown = re.sub(r"<[^>]+>", "", shown).replace("&#x27;", "'")
    assert shown == recipe.rstrip()
    assert 'data-copy="recipe-text" hidden' in text


def test_defaults_are_told_from_choices(read):
    rows = [
        EffectiveRow("a", "1", "default"),
        EffectiveRow("b", "2", "default (ddpm)"),
        EffectiveRow("c", "3", "--set"),
    ]
    assert "All 3 values, 1 of them not defaults" in read(build_report(ReportInputs(effective=rows))).words


def test_long_runs_list_their_last_events_only(read):
    events = [{"time": "2025-01-01T00:00:00", "event": "save", "step": k} for k in range(500)]
    page = read(build_report(ReportInputs(events=events)))
    assert "save 500 ×" in page.words
    assert "The first 300 events are left out" in page.words
    assert len(page.all("tr")) == 200


def test_equal_inputs_give_equal_files(full):
    assert build_report(full) == build_report(full)


def test_the_report_imports_no_torch():
    code = "import sys, diffkit.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stages_stand_in_the_order_of_a_run(full, read):
    rows = [text for tag, text in read(build_report(full)).texts if tag == "th"]
    stages = [row for row in rows if row in ("train", "sample", "evaluate", "report", "total")]
    assert stages[:5] == ["train", "sample", "evaluate", "report", "total"]


def test_a_value_named_as_its_metric_is_named_once(real_inputs, read):
    heads = {kind: [text for tag, text in read(build_report(real_inputs[kind])).texts if tag == "th"] for kind in KINDS}
    assert "sliced-wasserstein" in heads["points"]
    assert "nearest-neighbour ratio" in heads["images"]


def test_a_long_trajectory_is_thinned_evenly_from_first_to_last(read):
    points = np.random.default_rng(0).standard_normal((101, 3, 2))
    page = read(build_report(ReportInputs(trajectory=Trajectory(points, None, [f"t={100 - k}" for k in range(101)]))))
    assert [text for tag, text in page.texts if text.startswith("t=")] == [f"t={t}" for t in (100, 80, 60, 40, 20, 0)]


def test_the_first_estimates_of_images_are_explained_if_they_are_saturated(read):
    rng = np.random.default_rng(0)
    grey = rng.integers(60, 200, (3, 2, 4, 4, 1), dtype=np.uint8)
    saturated = grey.copy()
    saturated[0] = 255 * (grey[0] > 128)
    words = "100 % of the pixels are fully black or white"
    assert words in read(build_report(ReportInputs(trajectory=Trajectory(grey, saturated)))).words
    assert "of the pixels" not in read(build_report(ReportInputs(trajectory=Trajectory(grey, grey)))).words


def test_a_thousand_times_of_the_sampler_are_fifty_strokes(read):
    t = np.linspace(0, 1, 101)
    curves = ScheduleCurves(t, 1 - t, t, np.linspace(0, 1, 1000))
    text = build_report(ReportInputs(schedule=curves))
    assert "every 20th of the 1,000 times" in read(text).words
    (rug,) = [attributes["d"] for name, attributes in read(text).tags if attributes.get("class") == "rug"]
    assert 40 <= rug.count("M") <= 50


def test_samples_have_the_names_of_their_classes(read):
    images = np.zeros((4, 4, 4, 1), np.uint8)
    inputs = ReportInputs(samples=images, sample_conditions={"label": ["dress", "hat", "dress", "hat"]})
    assert "Classes, in turn from left to right: dress, hat." in read(build_report(inputs)).words
    inputs = ReportInputs(samples=images, sample_conditions={"label": ["hat", "hat", "dress", "hat"]})
    assert "Classes, from left to right: hat, hat, dress, hat." in read(build_report(inputs)).words


def test_how_samples_were_drawn_is_stated_once(full, read):
    assert read(build_report(full)).words.count("network calls each") == 1


def test_pictures_and_metrics_have_one_unit(real_inputs):
    """The median of the distances in the pictures is about that of the metric, which measures more samples."""
    inputs = real_inputs["images"]
    measured = inputs.results["nearest-neighbour"].values["distance"]
    assert 0.5 < np.median(inputs.neighbours.distances) / measured < 2
