"""A recipe of task classifier: trained beside the exact posterior, resumed, measured, reported, used as guidance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_guidance.classifier import ClassifierGuidance
from safetensors.torch import load_file

from diffkit import Classifier, RecipeError, Run, UsageError, build, load_recipe, open_run, run
from diffkit.cli.main import main

pytestmark = pytest.mark.xdist_group("classifier-training")

DATA = {"name": "mixture", "components": 4, "std": 0.3, "labels": True, "count": 2048, "held_out": 512}
SCHEDULE = {"name": "linear", "steps": 100, "beta_start": 1e-3, "beta_end": 0.2}
NETWORK = {"name": "mlp", "width": 32, "depth": 1, "embedding_channels": 16}


def recipe(**changes: Any) -> dict[str, Any]:
    train = {"steps": 200, "batch_size": 64, "ema": [0.9], "optimizer": {"name": "adam", "lr": 0.01}}
    return {
        "name": "classifier",
        "task": "classifier",
        "data": DATA,
        "schedule": SCHEDULE,
        "network": NETWORK,
        "train": {**train, **changes.pop("train", {})},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {"times": "stratified", "evaluate": [{"name": "accuracy", "levels": 4}]}
    return run(recipe(**changes), tmp_path_factory.mktemp("classifier") / "run")


def test_it_learns_the_posterior_of_the_classes(finished: Run) -> None:
    classifier, truth = finished.classifier(), finished.parts.data.truth()
    assert isinstance(classifier, Classifier)
    g = torch.Generator().manual_seed(0)
    for t in (1.0, 20.0, 60.0):
        level = classifier.schedule.level(t)
        raw, _ = finished.parts.data.split("held-out").rows(torch.arange(512))
        x = level.add_noise(raw, torch.randn(raw.shape, generator=g))
        with torch.no_grad():
            got = classifier(x, level).softmax(1)
        want = truth.responsibilities(x.double(), level)
        assert (got - want).abs().mean() < 0.06
        double = type(level)(2.0 * level.alpha, 2.0 * level.sigma)  # a level of another scale
        with torch.no_grad():
            torch.testing.assert_close(classifier(2.0 * x, double).softmax(1), got, rtol=1e-4, atol=1e-4)


def test_accuracy_by_noise_level_and_report(finished: Run) -> None:
    result = finished.results.metrics["accuracy"]
    by_time = [value for name, value in result.values.items() if name.startswith("t=")]
    assert len(by_time) == 4
    assert by_time[0] > 0.7
    assert abs(by_time[-1] - 0.25) < 0.1  # pure noise
    assert result.value == pytest.approx(sum(by_time) / 4)
    low, high = result.intervals["accuracy"]
    assert low < result.value < high
    assert result.needs == "classifier"
    page = finished.directory.report.read_text()
    assert "accuracy by noise level" in page
    assert "Held-out loss by noise level" in page
    assert "Not in this report" not in page


@pytest.mark.slow
def test_resume_is_equal_bit_for_bit(tmp_path: Path) -> None:
    run(recipe(train={"steps": 6}), tmp_path / "whole")
    run(recipe(train={"steps": 3}), tmp_path / "parts")
    run(recipe(train={"steps": 6}), tmp_path / "parts")
    for file in ("network", "ema-ema", "optimizer"):
        one, two = (
            load_file(tmp_path / name / "checkpoints" / "step-00000006" / f"{file}.safetensors")
            for name in ("whole", "parts")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_guides_another_run(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exact denoiser of all classes, guided, is near to the exact denoiser of one."""
    place = str(finished.directory.path)
    diffusion = {
        "name": "guided",
        "data": DATA | {"condition_dropout": 0.5},
        "schedule": SCHEDULE,
        "parameterization": "eps",
        "network": NETWORK,
        "objective": "simple",
        "train": {"steps": 2, "batch_size": 16, "ema": []},
        "sample": {"sampler": "ddim", "steps": 10, "count": 8, "guidance": [{"name": "classifier", "run": place}]},
    }
    truth, level = finished.parts.data.truth(), finished.classifier().schedule.level(40.0)
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(1)) * level.scale
    label = torch.arange(400) % 4
    found, all_classes, one = (
        denoise(x, level, **cond).x0
        for denoise, cond in (
            (ClassifierGuidance(place)(truth), {"label": label}),
            (truth, {}),
            (truth, {"label": label}),
        )
    )
    assert (found - one).abs().mean() < 0.35 * (all_classes - one).abs().mean()
    guided = run(diffusion, tmp_path / "guided")
    off, on = (guided.sample(4, labels=[2], guidance={"classifier": scale}) for scale in (0.0, 4.0))
    assert (off - on).abs().max() > 0.01
    assert main(["sample", place]) == 2
    assert "guidance: {name: classifier, run: RUN}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="trains a diffusion, not a classifier"):
        ClassifierGuidance(str(tmp_path / "guided"))
    with pytest.raises(UsageError, match="trains a diffusion, not a classifier"):
        open_run(tmp_path / "guided").classifier()
    other = diffusion | {"data": DATA | {"components": 3, "condition_dropout": 0.5}}
    with pytest.raises(RecipeError, match=r"inputs of shape \(2,\) and 4 classes; this recipe has \(2,\) and 3"):
        load_recipe(other)
    del diffusion["data"]["condition_dropout"]
    with pytest.raises(RecipeError, match="guidance classifier calls the network without label"):
        load_recipe(diffusion)


@pytest.mark.parametrize(
    ("changes", "message", "fix"),
    [
        (
            {"objective": "simple"},
            "objective: a classifier recipe has no objective",
            "remove it, or set task: diffusion",
        ),
        ({"loss": ["l2"]}, "loss: a classifier recipe has no loss", "remove it, or set task: codec"),
        ({"conditions": "color"}, "has no class color", "choose data with labels"),
        ({"data": DATA | {"labels": False}}, "has no class label", "choose data with labels"),
        ({"evaluate": ["frechet"]}, "metric frechet measures samples", "choose a metric of a classifier"),
    ],
)
def test_bad_recipes_have_one_error(changes: dict[str, Any], message: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "classifier.yaml"
    path.write_text(json.dumps(recipe(**changes), indent=1))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert not caught.value.errors or len(caught.value.errors) == 1
    rendered = caught.value.render()
    assert fix in rendered
    assert "classifier.yaml:" in rendered


@pytest.mark.slow
def test_the_recipe_of_digits(tmp_path: Path) -> None:
    found = run("classifier-digits", tmp_path / "run")
    values = found.results.metrics["accuracy"].values
    # Three standard errors of 512 digits; equal digits and noise leave the rounding of another machine.
    for time, measured in {"t=51": 0.900, "t=151": 0.836, "t=251": 0.668, "t=350": 0.436}.items():
        assert abs(values[time] - measured) < 3.0 * math.sqrt(measured * (1.0 - measured) / 512)
    assert build("guidance", "classifier", run=str(tmp_path / "run")).classifier.schedule.steps == 1000
