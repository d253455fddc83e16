"""Bits per dimension as a metric: values against closed forms, runs without samples, resumption, and bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import diffkit
from diffkit import ConditionSpec, DataSpec, Evaluation, Identity, Run, UsageError, build, load_recipe
from diffkit.basics.metrics.bits_per_dim import BitsPerDim
from diffkit.cli.main import cli
from diffkit.conditioner import Conditions, Unchanged
from diffkit.errors import DivergedError, RecipeError, StoppedError
from diffkit.metric import ModelSetting, Store, TrainedModel
from diffkit.oracles import GaussianOracle
from diffkit.report import build_report
from diffkit.report.wording import figure
from diffkit.runs import trained
from diffkit.runs.evaluation import RunStore, load_groups
from diffkit.runs.reporting import collect

pytestmark = pytest.mark.filterwarnings("ignore:bits-per-dim is")  # runs of two steps are worse than no model


def gaussian(seed: int = 0, **setting: Any) -> Evaluation:
    """800 held-out vectors of N(0, 1/4) in 3 dimensions, and their exact denoiser."""
    source = torch.Generator().manual_seed(7)
    train, held_out = (0.5 * torch.randn(800, 3, generator=source) for _ in range(2))
    spec = DataSpec(3)
    known = ModelSetting(spec, build("schedule", "linear"), build("grid", "trailing"), **setting)
    model = TrainedModel(known, GaussianOracle(0.0, 0.25), Identity(), batch_size=400)
    return Evaluation(spec, held_out[:0], train, held_out, seed=seed, model=model)


@pytest.mark.parametrize(
    "metric",
    [
        BitsPerDim(steps=40),
        BitsPerDim(method="continuous", steps=40, draws=2),
        BitsPerDim(method="ode", steps=12, probes=0),
    ],
    ids=lambda metric: metric.method,
)
def test_each_method_gives_the_entropy_of_gaussian_data(metric: BitsPerDim) -> None:
    """The bound with optimal variances is exact for an isotropic normal distribution, and so are the other two."""
    evaluation = gaussian()
    found = metric(evaluation)
    values = evaluation.held_out.double() / 0.5
    exact = (0.5 * (values**2).mean() + 0.5 * math.log(2 * math.pi * 0.25)) / math.log(2)
    own_noise = 4 * found["standard_error"]  # what two draws of the data differ by; the noise of the draws is less
    assert found["density_bits_per_dim"] == pytest.approx(float(exact), abs=own_noise)
    assert own_noise < 0.16
    assert found["held_out"] == 800
    if metric.method != "ode":
        parts = found["prior"] + found["kl"] + found["decoder"]
        assert found["density_bits_per_dim"] == pytest.approx(parts, rel=1e-9)
    assert found["nfe"] == {"bound": 40, "continuous": 82, "ode": 48}[metric.method]


def test_an_interrupted_evaluation_goes_on_and_errors_are_kept_for_their_weights() -> None:
    calls, store = 0, Store()
    evaluation = gaussian()
    assert evaluation.model is not None
    denoise = evaluation.model.denoise

    def counted(*given: Any, **cond: Any) -> Any:
        nonlocal calls
        calls += 1
        return denoise(*given, **cond)

    def stop(done: int, total: int) -> None:
        if done >= 600:
            raise StoppedError("stopped")

    metric = BitsPerDim(steps=10, fitted=100)
    model = replace(evaluation.model, denoise=counted, store=store, weights="a")
    with pytest.raises(StoppedError):
        metric(replace(evaluation, model=replace(model, watch=stop)))
    before = calls
    resumed = metric(replace(evaluation, model=model))
    batch, errors, pictures = 10, 10, len(store.read("terms", "")["reconstructions"]) - 1
    assert calls - before <= batch + pictures < 2 * batch, "the first batch and the errors are not computed again"
    assert resumed == metric(evaluation)
    calls = 0
    assert metric(replace(evaluation, model=model)) == resumed
    assert calls == pictures, "finished batches are kept"
    metric(replace(evaluation, model=replace(model, weights="b")))
    assert calls > errors + 2 * batch + pictures, "other weights, other errors and terms"


def test_a_condition_that_the_metric_does_not_pass_is_refused() -> None:
    setting = gaussian().model
    assert setting is not None
    conditions = Conditions({"depth": Unchanged(ConditionSpec((4,)))})
    with pytest.raises(UsageError, match="the model has the condition depth"):
        BitsPerDim().check(replace(setting.setting, conditions=conditions))


def test_a_bound_above_equal_probabilities_is_reported_and_infinity_is_refused() -> None:
    evaluation = gaussian()
    assert evaluation.model is not None
    few = (evaluation.held_out * 2).round().clamp(-2, 2) / 2  # five values, -1 to 1
    spec = DataSpec(3, bins=5)
    evaluation = replace(evaluation, spec=spec, held_out=few, train=few)
    setting = replace(evaluation.model.setting, spec=spec)
    far = replace(evaluation.model, setting=setting, denoise=GaussianOracle(30.0, 1e-4))
    with pytest.warns(UserWarning, match="more than the 2.32 of 5 equally probable values: look at the loss"):
        BitsPerDim(steps=5)(replace(evaluation, model=far))
    lost = replace(far, denoise=GaussianOracle(math.nan, 1.0), weights="lost")
    with pytest.raises(DivergedError, match="800 of 800 examples") as caught:
        BitsPerDim(steps=5)(replace(evaluation, model=lost))
    assert caught.value.code == "DK524"


def recipe(folder: Path) -> dict[str, Any]:
    path = folder / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(64) % 2)
    bound = {"name": "bits-per-dim", "steps": 6, "count": 8, "fitted": 8}
    return {
        "name": "images",
        "data": {"name": "arrays", "path": str(path), "layout": "channels-last", "held_out": 16},
        "schedule": {"name": "linear", "steps": 50},
        "parameterization": "eps",
        "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
        "train": {"steps": 2, "batch_size": 8, "sample_every": 0},
        "sample": {"count": 2, "steps": 2, "guidance": ["clip"]},
        "evaluate": [bound, bound | {"variance": "small", "fitted": None}, {**ODE, "count": 8}],
    }


ODE = {"name": "bits-per-dim", "method": "ode", "steps": 2}
NAMES = ["bits-per-dim(steps=6, count=8, fitted=8)", "bits-per-dim(steps=6, count=8, variance=small)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose recipe has three rows of one metric; drawing samples for metrics is an error."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "draw_samples", None)
        return diffkit.run(recipe(folder), folder / "images", device="cpu")


def test_rows_of_one_metric_stand_side_by_side_and_no_sample_is_drawn(run: Run) -> None:
    metrics = run.results.metrics
    assert list(metrics) == [*NAMES, "bits-per-dim(method=ode, steps=2, count=8)"]
    for name, result in metrics.items():
        assert result.needs == "model"
        assert (result.held_out, result.held_out_count, result.drawn) == ({}, 8, None)
        assert result.train.keys() == result.values.keys(), name
        assert result.intervals["bits_per_dim"].high > result.values["bits_per_dim"]
    assert run.results.verdict is None
    assert run.results.metrics[NAMES[0]].values["bits_per_dim"] < run.results.metrics[NAMES[1]].values["bits_per_dim"]


def test_the_terms_lie_in_the_run_and_sum_to_the_result(run: Run) -> None:
    groups = load_groups(run.directory.likelihood / "terms.npz")
    for name in NAMES:
        values, terms = run.results.metrics[name].values, groups[name]
        assert values["bits_per_dim"] == pytest.approx(terms["prior"] + terms["layers"].sum(), rel=1e-6)
        assert values["bits_per_dim"] == pytest.approx(terms["examples"].mean(), rel=1e-9)
        assert terms["t"].shape == terms["layers"].shape == (6,)
        assert list(terms["t"]) == sorted(terms["t"])
        assert terms["rate"][-1] == pytest.approx(values["bits_per_dim"], rel=1e-6)
        assert terms["reconstructions"].shape[1:] == (4, 1, 4, 4)
    errors = load_groups(run.directory.likelihood / "errors.npz")
    assert [group["errors"].shape for group in errors.values()] == [(6,)]


def test_the_report_shows_the_terms_and_leaves_out_a_damaged_file(run: Run) -> None:
    collected = collect(run.directory, run.assembly)
    assert [terms.name for terms in collected.likelihood] == NAMES
    page = build_report(collected)
    section = page[page.index('<section id="likelihood"') :].partition("</section>")[0]
    for terms in collected.likelihood:
        total = run.results.metrics[terms.name].values["bits_per_dim"]
        assert f"{terms.name} {figure(total, 4)}" in section
    shown = collected.likelihood[0]
    assert shown.reconstructions is not None
    assert shown.reconstructions.shape[1:] == (4, 4, 4, 1)
    assert section.count("<li>") >= len(shown.reconstruction_rates) == len(shown.reconstructions)
    assert 'alt="4 held-out examples after' in section
    assert all(heading in section for heading in ("Terms, stacked over t", "Distortion over rate"))
    assert "Real held-out" not in page, "no metric of samples was measured"
    path = run.directory.likelihood / "terms.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    damaged = collect(run.directory, run.assembly)
    path.write_bytes(whole)
    assert damaged.likelihood == []
    assert any("terms.npz" in reason for reason in damaged.missing)


def test_the_command_line_measures_with_options_and_compare_shows_standard_errors(run: Run) -> None:
    path = str(run.directory.path)
    runner = CliRunner()
    chosen = ["--metric", "bits-per-dim", "--set", "method=continuous", "--set", "steps=2", "--set", "count=8"]
    found = runner.invoke(cli, ["evaluate", path, *chosen, "-q", "--json", "--device", "cpu"])
    assert found.exit_code == 0, found.output
    metrics = json.loads(found.stdout)["metrics"]
    assert metrics["bits-per-dim(method=continuous, steps=2, count=8)"]["values"]["nfe"] == 3
    assert "bits-per-dim(method=continuous, steps=2, count=8)" in run.directory.report.read_text(encoding="utf-8")
    shown = runner.invoke(cli, ["compare", path, path]).output
    (line,) = [line for line in shown.splitlines() if line.startswith(f"{NAMES[0]}.bits_per_dim")]
    values = metrics[NAMES[0]]["values"]
    text = f"{values['bits_per_dim']:.4g} ± {values['standard_error']:.2g}"
    assert line.count(text) == 2
    with pytest.raises(UsageError, match="no sample is drawn") as caught:
        run.evaluate("bits-per-dim", steps=5)
    assert "--set steps=100" in str(caught.value.fix)
    with pytest.raises(UsageError, match="name of a metric"):
        run.evaluate(options={"steps": 5})


def test_the_store_of_a_run_replaces_one_group_and_keeps_the_others(run: Run) -> None:
    store = RunStore(run.directory)
    store.write("test", "a(b=1/2)", {"x": torch.arange(3.0), "y": torch.ones(2, 2)})
    store.write("test", "c", {"x": torch.zeros(1)})
    store.write("test", "c", {})
    assert store.read("test", "c") == {}
    assert torch.equal(store.read("test", "a(b=1/2)")["y"], torch.ones(2, 2))


CONTINUOUS = """
name: bad
data: {name: mixture}
schedule: {name: linear, steps: 100}
parameterization: eps
network: {name: mlp, width: 16, depth: 1}
train: {steps: 10}
evaluate:
  - frechet
  - name: bits-per-dim
    OPTION
"""


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("decoder: discretised", "DK521", "discretised requires discrete data, but the model diffuses continuous data"),
        ("decoder: categorical", "DK521", "categorical requires discrete data"),
        ("cdf: tanh", "DK521", "cdf requires discrete data"),
        ("variance: learned", "DK520", "variance learned requires variance_fraction"),
        ("steps: 101", "DK022", "101 steps on a schedule of 100"),
        ("clean: 100.0", "DK520", "clean: 100.0 is not a level with noise"),
        ("probes: 3", "DK107", "probes has no effect with bound; it belongs to ode"),
        ("fitted: 3, variance: small", "DK107", "fitted has no effect with variance small"),
        ("method: ode, dequantise: uniform", "DK521", "uniform requires discrete data"),
        ("method: ode, tolerance: 0.1, steps: 3", "DK107", "tolerance has no effect with steps"),
    ],
)
def test_each_wrong_option_gives_one_error_with_its_line(tmp_path: Path, option: str, code: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(CONTINUOUS.replace("OPTION", "\n    ".join(option.split(", "))))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    (error,) = caught.value.errors or (caught.value,)
    assert (error.code, message in str(error)) == (code, True), error
    assert error.where is not None
    assert error.where.file == str(path)
    assert error.where.line >= 11


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (
            ["sample.guidance=[cfg]", "data.labels=labels", "data.condition_dropout=0.1"],
            "DK523",
            "ClassifierFree changes",
        ),
        (["evaluate.0.levels=17"], "DK521", "levels is 17, but the data has 256 values"),
        (
            ["codec={name: affine, scale: 2.0}", "sample.guidance=[]", "evaluate.0.decoder=discretised"],
            "DK521",
            "discretised requires discrete data, but the model diffuses latents of a codec",
        ),
    ],
)
def test_what_has_no_likelihood_is_refused(tmp_path: Path, overrides: list[str], code: str, message: str) -> None:
    whole = recipe(tmp_path) | {"evaluate": [{"name": "bits-per-dim"}]}
    load_recipe(whole)
    with pytest.raises(RecipeError) as caught:
        load_recipe(whole, overrides)
    (error,) = caught.value.errors or (caught.value,)
    assert (error.code, message in str(error)) == (code, True), error
