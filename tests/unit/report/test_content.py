"""The report as a whole: what it says, what it leaves out, and that nothing untrusted becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffkit.report import (
    Citation,
    EffectiveRow,
    LossByLevel,
    Neighbours,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
    build_report,
)

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


@pytest.fixture(scope="module", params=["images", "points"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def full(demo, kind) -> ReportInputs:
    return demo.inputs(kind)


def sections(page) -> list[str]:
    return [one["id"] for one in page.all("section")]


def test_a_full_report_is_valid_and_has_every_part(full, kind, read):
    page = read(build_report(full))
    every = ["samples", "metrics", "neighbours", "trajectory", "training", "schedule", "recipe", "record", "references"]
    assert sections(page) == [name for name in every if kind == "images" or name != "neighbours"]
    assert {name for name, _ in page.tags} <= ALLOWED
    assert len(page.all("h1")) == 1


def test_nothing_is_loaded_from_outside(full, read):
    text = build_report(full)
    for name, attributes in read(text).tags:
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (name, value)
        assert "style" not in attributes
        assert not any(key.startswith("on") for key in attributes)


def test_every_picture_is_a_readable_png_with_a_text_alternative(full, kind, read):
    page = read(build_report(full))
    pictures = page.all("img") + page.all("image")
    assert len(pictures) == (2 + 4 + 12 + 2 if kind == "images" else 2 + 4 + 6 + 6)
    for attributes in pictures:
        address = attributes.get("src") or attributes.get("href")
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            image.load()
            if "src" in attributes:
                assert (str(image.width), str(image.height)) == (attributes["width"], attributes["height"])
    assert all(one["alt"].strip() for one in page.all("img"))
    charts = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
    assert len(charts) == (6 if kind == "images" else 6 + 2 + 4 + 12)
    assert all(one["role"] == "img" and one["aria-label"].strip() for one in charts)


def test_the_verdict_and_key_figures(full, read):
    words = read(build_report(full)).words
    assert "Close to real data: frechet is 0.127 where real held-out data scores 0.0879." in words
    assert f"parameters was trained on {full.data_name} for 2,000 steps in 2 min 3 s on 2 CPU threads." in words
    assert "real data: 0.0879 (1.44 ×)" in words
    assert "Squared Frechet distance of two Gaussians fitted to pixels scaled to 0..1." in words
    assert "512 samples against 1,285 real examples, the real row from 270 held-out examples" in words
    assert "frechet samples" not in words, "counts are no measures"
    assert "terminal SNR is 4.04 × 10⁻⁵" in words


@pytest.mark.parametrize(
    ("value", "held_out", "lower", "words"),
    [
        (1.2, 1.0, True, "On par with real data"),
        (1.9, 1.0, True, "Close to real data"),
        (4.9, 1.0, True, "Still apart from real data"),
        (5.1, 1.0, True, "Far from real data"),
        (0.5, 1.0, False, "Close to real data"),
        (0.1, 1.0, False, "Far from real data"),
        (1.9, 1.0, None, "Close to real data"),
        (0.1, 1.0, None, "Far from real data"),
        (9.0, 1.0, None, "Far from real data"),
        (0.2, -0.001, True, "m is 0.200 where real held-out data scores −0.00100."),
        (0.2, None, True, "there is no held-out score"),
    ],
)
def test_verdicts(value, held_out, lower, words, read):
    entry = {"values": {"m": value}, "held_out": {} if held_out is None else {"m": held_out}, "lower_is_better": lower}
    page = read(build_report(ReportInputs(results={"metrics": {"m": entry}})))
    assert words in page.words


def test_divergence_overrules_every_score(full, read):
    rows = [*full.metrics, {"step": 2010, "loss": math.nan}]
    words = read(build_report(dataclasses.replace(full, metrics=rows))).words
    assert "Training diverged: the loss stopped being finite at step 2,010." in words
    assert "Steps whose loss was not finite: 1." in words


def test_an_empty_run_still_gives_a_page(read):
    page = read(build_report(ReportInputs()))
    assert sections(page) == []
    assert "Nothing was measured in this run." in page.words


def test_a_run_with_training_only(full, read):
    inputs = ReportInputs(
        title="t", metrics=full.metrics[:20], total_steps=2000, missing=("samples: diffkit sample runs/t",)
    )
    page = read(build_report(inputs))
    assert sections(page) == ["training"]
    assert "Trained, not yet measured." in page.words
    assert "200 of 2,000 steps" in page.words
    assert "Not in this report: samples: diffkit sample runs/t." in page.words
    assert page.all("img") == []


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(ReportInputs)])
def test_each_field_may_be_absent(demo, field, read):
    empty = getattr(ReportInputs(), field)
    read(build_report(dataclasses.replace(demo.inputs("images"), **{field: empty})))


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(ReportInputs)])
def test_each_field_may_be_alone(full, field, read):
    read(build_report(ReportInputs(**{field: getattr(full, field)})))


def test_hostile_texts_everywhere_stay_texts(demo, read):
    full = demo.inputs("images")
    entry = {
        "values": {HOSTILE: 1.0},
        "held_out": {HOSTILE: 2.0},
        "definition": HOSTILE,
        "sampler": HOSTILE,
        "nfe": HOSTILE,
    }
    hostile = dataclasses.replace(
        full,
        **dict.fromkeys(("title", "data_name", "sampling", "hardware", "created"), HOSTILE),
        recipe_yaml=f"{HOSTILE}\n{HOSTILE}: 1 # {HOSTILE}\nname: {HOSTILE}",
        effective=[EffectiveRow(HOSTILE, HOSTILE, HOSTILE)],
        environment={HOSTILE: HOSTILE, "group": {HOSTILE: [HOSTILE], "deep": {HOSTILE: {HOSTILE: HOSTILE}}}},
        events=[{"time": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE, "step": HOSTILE}],
        metrics=[{"step": 1, "loss": HOSTILE}, {"step": HOSTILE, "loss": 1.0}],
        results={"metrics": {HOSTILE: entry}, "timings": {HOSTILE: 3.0, "x": HOSTILE}},
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


@pytest.mark.parametrize(
    "results",
    [
        {"metrics": None, "timings": None},
        {"metrics": ["a"], "timings": "x"},
        {"metrics": {"a": None, "b": {"values": 3}, "c": {"values": {"v": None}}}, "timings": {"t": -1, "u": math.nan}},
        {"metrics": {"a": {"values": {"v": 10**400}}}},
        {"metrics": {"a": {"values": {"v": 0.0}, "held_out": {"v": 0.0}}}, "timings": {"train": 0}},
    ],
)
def test_damaged_results_do_no_harm(results, read):
    read(build_report(ReportInputs(results=results, metrics=[{}, {"step": None}, {"step": 1}])))


def test_a_step_gone_over_again_after_a_resume_counts_once(read):
    rows = [{"step": s, "loss": 1.0} for s in (10, 20, 30)] + [{"step": s, "loss": 0.5} for s in (20, 30)]
    page = read(build_report(ReportInputs(metrics=rows, events=[{"event": "resume", "step": 10}])))
    (data,) = (one["data-plot"] for one in page.all("div") if "data-plot" in one)
    assert '"x":[10.0,20.0,30.0],"y":[1.0,0.5,0.5]' in data
    assert "resumed at step 10" in page.words


def test_loss_by_level_on_either_axis(read):
    level, loss = np.linspace(-3, 3, 5), np.linspace(1, 2, 5)
    for axis, side in (("t", "right"), ("half_logsnr", "left")):
        page = read(build_report(ReportInputs(loss_by_level=LossByLevel(level, loss, axis=axis))))
        assert f"the noisiest levels are on the {side}." in page.words


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
    page = read(build_report(ReportInputs(samples=samples, real=real, progress=[Snapshot(5, samples)])))
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
                progress=[Snapshot(1, images[:0]), Snapshot(2, images)],
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
    assert "All 3 values in force, 1 of them not defaults" in read(build_report(ReportInputs(effective=rows))).words


def test_long_runs_list_their_last_events_only(read):
    events = [{"time": "2025-01-01T00:00:00", "event": "save", "step": k} for k in range(500)]
    page = read(build_report(ReportInputs(events=events)))
    assert "save 500 ×" in page.words
    assert "The first 300 are left out here" in page.words
    assert len(page.all("tr")) == 200


def test_equal_inputs_give_equal_files(demo):
    assert build_report(demo.inputs("images")) == build_report(demo.inputs("images"))


def test_the_report_imports_no_torch():
    code = "import sys, diffkit.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stages_stand_in_the_order_of_a_run_and_a_value_named_as_its_metric_is_named_once(read):
    results = {
        "metrics": {"sliced-wasserstein": {"values": {"sliced_wasserstein": 1.0, "spread": 2.0}}},
        "timings": {"evaluate": 3.0, "other": 1.0, "sample": 2.0, "train": 1.0},
    }
    page = read(build_report(ReportInputs(results=results)))
    rows = [text for tag, text in page.texts if tag == "th"]
    assert rows[4:] == [
        "sliced-wasserstein",
        "sliced-wasserstein spread",
        "train",
        "sample",
        "evaluate",
        "other",
        "total",
    ]


def test_a_long_trajectory_is_thinned_evenly_from_first_to_last(read):
    points = np.random.default_rng(0).standard_normal((101, 3, 2))
    page = read(build_report(ReportInputs(trajectory=Trajectory(points, None, [f"t={100 - k}" for k in range(101)]))))
    assert [text for tag, text in page.texts if text.startswith("t=")] == [f"t={t}" for t in (100, 80, 60, 40, 20, 0)]
