"""A run as a library sees it: `diffkit.run`, `diffkit.open_run`, and what they return."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffkit
from diffkit import Level, Run
from diffkit.errors import ArgumentError, CheckpointError, DataError, RecipeError, UsageError
from diffkit.host import configure, load_file
from diffkit.runs.sampling import SamplingPlan, draw_samples
from diffkit.runs.weights import load_weights
from diffkit.sampler import sample
from diffkit.storage.checkpoint import read_checkpoint
from diffkit.storage.manifest import candidates
from diffkit.train.ema import Profile, power_of, reconstruct, stored_profiles

pytestmark = pytest.mark.xdist_group("trained")

RECIPE: dict[str, Any] = {
    "name": "ring",
    "data": {"name": "mixture", "layout": "ring", "count": 256, "held_out": 64, "labels": True},
    "schedule": {"name": "linear", "steps": 50},
    "parameterization": "eps",
    "network": {"name": "mlp", "width": 16, "depth": 1},
    "objective": "simple",
    "train": {"steps": 20, "batch_size": 32, "ema": [{"name": "fast", "decay": 0.5}, {"name": "slow", "decay": 0.99}]},
    "sample": {"sampler": "ancestral", "count": 8, "steps": 5, "batch_size": 3},
    "evaluate": {"metrics": ["sliced-wasserstein"], "steps": 3, "count": 16},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return diffkit.run(RECIPE, out=tmp_path_factory.mktemp("runs") / "ring", device="cpu")


def test_a_run_gives_recipe_results_and_samples(run: Run) -> None:
    assert run.recipe.name == "ring"
    assert run.results.metrics["sliced-wasserstein"].samples == 16
    x = run.sample(5, seed=3)
    assert x.shape == (5, 2)
    assert torch.equal(x, diffkit.open_run(run.directory.path, device="cpu").sample(5, seed=3))


def test_a_sample_does_not_depend_on_its_batch(run: Run) -> None:
    """Pains 16: sample i of a seed is the same whatever the batch size; batches here are of 3."""
    seven = run.sample(7, seed=1, labels=[2])
    assert torch.allclose(run.sample(2, seed=1, labels=[2]), seven[:2], atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"steps": 9}, {"weights": "raw"}, {"weights": "slow"}, {"labels": [3]}, {"grid": "quadratic"}],
    ids=lambda c: next(iter(c)),
)
def test_every_choice_of_sample_changes_the_samples(run: Run, changed: dict[str, Any]) -> None:
    """Pains 25."""
    assert not torch.equal(run.sample(4), run.sample(4, **changed))


def test_samplers_may_be_named_described_or_given(run: Run) -> None:
    from diffkit.ddpm.sampler import Ancestral

    large = run.sample(4, sampler=Ancestral("large"))
    assert torch.equal(large, run.sample(4, sampler={"name": "ancestral", "variance": "large"}))
    assert not torch.equal(large, run.sample(4, sampler="ancestral"))


def test_ema_means_the_first_average(run: Run) -> None:
    assert torch.equal(run.sample(3), run.sample(3, weights="fast"))
    with pytest.raises(UsageError, match="no weights"):
        run.sample(1, weights="medium")


def test_sampling_from_given_examples_starts_at_their_noise(run: Run) -> None:
    """Image to image: at a small time x hardly changes, at the whole time it is forgotten."""
    x = torch.tensor([[0.9, 0.1], [-0.5, 0.6], [0.2, -0.8]])
    near = run.sample(3, x=x, start=1, steps=1, labels=[0])
    far = run.sample(3, x=x, start=50, labels=[0])
    assert (near - x).norm() < 0.5 * (far - x).norm()
    with pytest.raises(UsageError, match="start"):
        run.sample(3, x=x)
    with pytest.raises(UsageError, match="shape"):
        run.sample(4, x=x, start=10)


def test_interpolation_is_sampling_from_a_mixture_of_two_states(run: Run) -> None:
    """Runners-up of the pains: the level that is asked first is the one whose noise was added."""
    assembly = run.assembly
    asked: list[float] = []
    denoise = run.denoiser(guidance=False)

    def spy(x: torch.Tensor, level: diffkit.Level, /, **cond: torch.Tensor) -> diffkit.Estimate:
        asked.append(float(assembly.schedule.time(level)))
        return denoise(x, level, **cond)

    from diffkit.schedule import sampled

    levels = assembly.grid.levels(sampled(assembly.schedule, 20), 4)
    plan = SamplingPlan(assembly.sampler, levels, (2,), 2)
    draw_samples(spy, plan, assembly.codec, "cpu", x=torch.zeros(2, 2))
    assert asked[0] == 20.0


def test_evaluations_of_guidance_count_for_each_example(run: Run) -> None:
    """cfg evaluates both estimates in one call, on twice the examples."""
    assembly = run.trained()
    cfg = assembly.build("guidance", "cfg", scale=2.0)
    plan = SamplingPlan(assembly.sampler, assembly.levels(4), (2,), 5, batch_size=3, conditions=assembly.conditions)
    seen: list[int] = []
    for guidance, count in (((), 4), ((cfg,), 8)):
        guided = replace(plan, guidance=guidance)
        drawn = draw_samples(assembly.model, guided, assembly.codec, "cpu", on_step=lambda step: seen.append(step.nfe))
        assert drawn.nfe == count
    assert seen[-4:] == [2, 4, 6, 8]


def test_the_denoiser_is_what_was_trained(run: Run) -> None:
    levels = run.assembly.levels()
    x = torch.zeros(2, 2)
    label = torch.tensor([1, 1])

    def bound(z: torch.Tensor, level: diffkit.Level, /, **cond: torch.Tensor) -> diffkit.Estimate:
        return run.denoiser("raw")(z, level, label=label)

    assert sample(bound, run.assembly.sampler, levels, x).shape == (2, 2)


def test_evaluating_other_metrics_keeps_the_earlier_ones(run: Run) -> None:
    results = run.evaluate(["mmd"], count=12)
    assert {"mmd", "sliced-wasserstein"} <= set(results.metrics)


def test_the_results_of_the_recipe_stay_the_headline(run: Run) -> None:
    """A6: `evaluate --count 16 --weights raw` replaced the recipe's result in results.json, headline and `compare`."""
    own = run.results.metrics["sliced-wasserstein"]
    assert (own.own, own.steps, own.drawn, own.seed, own.step) == (True, 3, 16, 0, 20)
    for options in ({"weights": "raw"}, {"count": 12}, {"steps": 2}, {"seed": 5}):
        run.evaluate("sliced-wasserstein", **options)  # type: ignore[arg-type]
        assert run.results.metrics["sliced-wasserstein"] == own
    others = run.results.others["sliced-wasserstein"]
    assert [(one.weights, one.drawn, one.steps, one.seed) for one in others] == [
        ("raw", 16, 3, 0),
        ("ema", 12, 3, 0),
        ("ema", 16, 2, 0),
        ("ema", 16, 3, 5),
    ]
    assert run.evaluate("sliced-wasserstein").metrics["sliced-wasserstein"].values == own.values
    with pytest.raises(UsageError, match="seed must be a whole number"):
        run.evaluate(seed=-1)


PICTURES: dict[str, Any] = {
    "name": "pictures",
    "data": {"name": "images", "path": "pics", "labels": True},
    "schedule": {"name": "linear", "steps": 20},
    "parameterization": "eps",
    "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
    "objective": "simple",
    "train": {"steps": 2, "batch_size": 4},
    "sample": {"count": 4, "steps": 2},
}


def test_a_trained_run_is_used_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B11: moved, from another working directory, with a class more, without data; only training needs the data."""
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "recipes" / "pics" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "recipes" / "pics" / name / f"{i}.png")
    recipe = tmp_path / "recipes" / "pictures.yaml"
    recipe.write_text(json.dumps(PICTURES, indent=1))
    monkeypatch.chdir(tmp_path)
    made = diffkit.run(recipe, out="runs/r", device="cpu")
    assert f"path: {tmp_path / 'recipes' / 'pics'}" in made.directory.effective.read_text()
    want = made.sample(3, labels=["dog"])
    with pytest.raises(ArgumentError, match=r"labels must be 0-1 \(cat, dog\), or 2 for the unconditional class, got"):
        made.sample(1, labels=["dress"])

    def check(place: Path) -> None:
        opened = diffkit.open_run(place, device="cpu")
        assert opened.assembly.data.spec.class_names == ("cat", "dog")
        assert torch.equal(opened.sample(3, labels=[1]), want)
        opened.write_report()

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    check(Path("../runs/r"))
    diffkit.run(recipe, out="../runs/r", device="cpu")  # the same data by the same recipe: finished
    shutil.copytree(tmp_path / "recipes" / "pics" / "dog", tmp_path / "recipes" / "pics" / "eel")
    check(Path("../runs/r"))
    with pytest.raises(DataError, match="the data has changed since the run was trained") as caught:
        diffkit.run(recipe, out="../runs/r", device="cpu")
    assert "classes: 2 then, 3 now" in caught.value.notes
    assert "never" not in caught.value.render()
    with pytest.raises(DataError, match="has changed"):
        diffkit.open_run("../runs/r", device="cpu").evaluate("mmd", count=4)
    shutil.move(tmp_path / "recipes", tmp_path / "moved")
    shutil.move(tmp_path / "runs" / "r", tmp_path / "r")
    check(tmp_path / "r")
    assert "real examples: the folder of images not found" in (tmp_path / "r" / "report.html").read_text()
    with pytest.raises(DataError, match="not found") as caught:
        diffkit.run(PICTURES, out=tmp_path / "r", device="cpu")
    assert "never" not in caught.value.render()
    shutil.rmtree(tmp_path / "moved" / "pics" / "eel")
    diffkit.run(tmp_path / "moved" / "pictures.yaml", out=tmp_path / "r", device="cpu")  # the data has moved
    shutil.rmtree(tmp_path / "moved")
    check(tmp_path / "r")
    (tmp_path / "r" / "data.json").write_text('{"spec": {"channels": 99999999}}')
    with pytest.raises(CheckpointError, match=r"data.json is damaged"):
        diffkit.open_run(tmp_path / "r").sample(1)


def test_a_run_without_a_checkpoint_says_so(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.directory.path, copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        diffkit.open_run(copy, device="cpu").sample(1)


def test_an_average_of_any_width_after_training(tmp_path: Path) -> None:
    """`width:W` of a stored average is that average; another width lies elsewhere, and nonsense is refused."""
    train = {"steps": 60, "batch_size": 8, "checkpoint_every": 10, "keep": 6}
    ema = [{"name": "wide", "power": power_of(0.2)}, {"name": "narrow", "power": power_of(0.05)}]
    made = diffkit.run(RECIPE | {"train": {**train, "ema": ema}, "evaluate": {"metrics": []}}, out=tmp_path / "ring")

    def weights(name: str) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in made.trained(name).network.parameters()])

    for width, name in ((0.2, "wide"), (0.05, "narrow")):
        torch.testing.assert_close(weights(f"width:{width}"), weights(name), rtol=0, atol=1e-5)
    between, apart = weights("width:0.1"), (weights("wide") - weights("narrow")).norm()
    assert all(0.01 * apart < (between - weights(name)).norm() < apart for name in ("wide", "narrow"))
    for wrong in ("width:", "width:0", "width:0.5", "width:nan", "width:x"):
        with pytest.raises(UsageError, match="not the width of a power average"):
            made.denoiser(wrong)


def test_widths_where_the_newest_averages_are_damaged(tmp_path: Path) -> None:
    """As with every other weights: the checkpoint before is taken, and said."""
    train = {"steps": 20, "batch_size": 8, "checkpoint_every": 5, "keep": 4}
    ema = [{"name": "wide", "power": power_of(0.2)}, {"name": "narrow", "power": power_of(0.05)}]
    made = diffkit.run(RECIPE | {"train": {**train, "ema": ema}, "evaluate": {"metrics": []}}, out=tmp_path / "ring")
    (made.directory.checkpoints / "step-00000020" / "ema-wide.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="the checkpoint of step 20 is skipped: ema-wide"):
        loaded = load_weights(made.directory, made.assembly, torch.device("cpu"), "width:0.1")
    assert loaded.step == 15
    want = reconstruct(stored_profiles(made.directory.checkpoints), Profile(15, power_of(0.1)))
    got = loaded.assembly.network.state_dict()
    assert len({name for name in want if torch.equal(want[name], got[name])}) == len(got)
    assert {profile.t for profile, _ in stored_profiles(made.directory.checkpoints)} == {5, 10, 15}


def test_a_run_without_power_averages_has_nothing_to_reconstruct_from(run: Run) -> None:
    with pytest.raises(UsageError, match="stores no power average"):
        run.denoiser("width:0.1")


def test_only_an_evaluation_as_the_recipe_says_counts_as_one(tmp_path: Path) -> None:
    """Else `run` would leave out the metrics of the recipe when it goes on."""
    made = diffkit.run(RECIPE | {"evaluate": {"metrics": []}}, out=tmp_path / "ring", device="cpu")
    made.evaluate(["mmd"], count=8, steps=2)
    assert "evaluate" not in made.directory.read_json("stages.json")


def test_weights_of_an_older_checkpoint_are_announced(tmp_path: Path) -> None:
    made = diffkit.run(RECIPE | {"train": {"steps": 4, "batch_size": 8, "checkpoint_every": 2}}, out=tmp_path / "ring")
    (made.directory.checkpoints / "step-00000004" / "network.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="the checkpoint of step 4 is skipped: network.safetensors has 0 bytes"):
        diffkit.open_run(made.directory.path).sample(2)


def test_denoisers_of_different_weights_coexist(run: Run) -> None:
    """Each owns its weights: a later call of `denoiser`, `sample` or `evaluate` changes none of them."""
    x, level = torch.tensor([[0.3, -0.2]]), run.assembly.levels()[1]
    names = ["ema", "raw", "slow"]
    alone = [diffkit.open_run(run.directory.path, device="cpu").denoiser(name)(x, level).x0 for name in names]
    together = [run.denoiser(name) for name in names]
    run.sample(2, weights="raw")
    for want, denoise in zip(alone, together, strict=True):
        assert torch.equal(denoise(x, level).x0, want)
    assert not torch.equal(alone[0], alone[1])


def test_threads_that_mix_weights_do_not_disturb_each_other(run: Run) -> None:
    fresh = diffkit.open_run(run.directory.path, device="cpu")
    x, level = torch.tensor([[0.3, -0.2]]), run.assembly.levels()[1]
    want = {name: run.denoiser(name)(x, level).x0 for name in ("ema", "raw", "slow")}
    names = [*want] * 30
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: fresh.denoiser(name)(x, level).x0, names))
    assert [name for name, x0 in zip(names, found, strict=True) if not torch.equal(x0, want[name])] == []


def test_equal_weights_are_held_once(run: Run) -> None:
    assert run.trained("ema").network is run.trained("fast").network
    assert run.trained("ema").data is run.assembly.data


LEARNED = """
import math
import torch
from torch import Tensor, nn
from diffkit import Entry, Level, Loss, Objective, Schedule, hookimpl


@hookimpl
def diffkit_components():
    yield Entry("schedule", "learned-angle", "learned_angle:LearnedAngle", "a learned last angle")
    yield Entry("objective", "smaller-angle", "learned_angle:SmallerAngle", "prefer 1.2 as the last angle")


class SmallerAngle(Objective):
    trains_schedule = True

    def __call__(self, model, x0, noise, *, ema=None, **cond):
        eps, t = noise.normal("noise", x0), noise.uniform("times", x0)
        level = model.schedule.level(t)
        y = model.output(level.add_noise(x0, eps), level, t)
        return Loss.of((y - eps).square().mean(1) + (model.schedule.end - 1.2) ** 2, t)


class LearnedAngle(nn.Module, Schedule):
    def __init__(self):
        super().__init__()
        self.end = nn.Parameter(torch.tensor(1.4))

    def level(self, t):
        if isinstance(t, Tensor):
            angle = self.end * t
            return Level(torch.cos(angle), torch.sin(angle))
        angle = self.end.item() * t
        return Level(math.cos(angle), math.sin(angle))

    def time(self, level):
        return level.angle / (self.end if isinstance(level.angle, Tensor) else self.end.item())
"""


def test_the_device_holds_the_trained_weights_alone(run: Run) -> None:
    """The meta device stands for an accelerator: what lies there was moved."""
    opened = Run(run.directory, torch.device("meta"), overrides=("sample.precision=bfloat16",))
    assert {(p.is_meta, p.dtype) for p in opened.trained().network.parameters()} == {(True, torch.bfloat16)}
    assert not any(p.is_meta for p in opened.assembly.network.parameters())


def test_a_learned_schedule_belongs_to_the_weights(tmp_path: Path) -> None:
    """The levels of sampling are those of the trained schedule; the assembly of the recipe keeps the initial one."""
    (tmp_path / "learned_angle.py").write_text(LEARNED)
    load_file(tmp_path / "learned_angle.py")
    try:
        with pytest.raises(RecipeError, match="objective simple cannot train schedule learned-angle") as caught:
            diffkit.load_recipe(RECIPE | {"schedule": "learned-angle", "objective": "simple"})
        assert caught.value.errors[0].code == "DK122"
        train = {"steps": 20, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}}
        made = diffkit.run(
            RECIPE
            | {"schedule": "learned-angle", "objective": "smaller-angle", "train": train, "evaluate": {"metrics": []}},
            out=tmp_path / "ring",
            device="cpu",
        )
        opened = diffkit.open_run(made.directory.path, device="cpu")
        trained, initial = opened.trained("raw").schedule, opened.assembly.schedule
        stored = read_checkpoint(candidates(made.directory.checkpoints)[0], {"components": None}).tensors["components"]
        assert torch.equal(stored["schedule.end"], trained.state_dict()["end"])
        assert float(initial.state_dict()["end"]) == pytest.approx(1.4)
        assert abs(float(trained.state_dict()["end"]) - 1.4) > 1e-3
        first = opened.sample(2, steps=3)
        assert torch.equal(first, opened.sample(2, steps=3))
        assert torch.equal(first, made.sample(2, steps=3))
        moved = diffkit.Run(made.directory, torch.device("meta")).trained().schedule
        assert all(one.is_meta for one in moved.state_dict().values())
    finally:
        configure()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be a whole number, 1 or more, got 0"),
        ({"count": 2.5}, "count must be a whole number"),
        ({"count": True}, "count must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"labels": ["dress"]}, "labels must be 0-7, or 8 for the unconditional class.*has no names of classes"),
        ({"labels": [9]}, "labels must be 0-7, or 8 for the unconditional class"),
        ({"labels": [0.5]}, "labels must be 0-7"),
        ({"labels": []}, "labels must be 0-7"),
        ({"sampler": 5}, "sampler must be a name, a mapping with a name, or a Sampler, got int"),
        ({"sampler": {"variance": "large"}}, "sampler must be a name"),
        ({"grid": torch.zeros(3)}, "grid must be a name"),
        ({"weights": 3}, "weights must be a name"),
        ({"x": torch.zeros(2, 3), "start": 5}, r"shape \(2, 2\)"),
        ({"x": torch.zeros(2, 2, dtype=torch.bool), "start": 5}, "x must be examples"),
        ({"x": [[0.0, 0.0]], "start": 5}, "x must be examples"),
        ({"x": torch.full((2, 2), float("nan")), "start": 5}, "(?i)nan"),
        ({"start": 0}, "start is 0.*choose a whole step above 0, up to 50"),
        ({"start": 0.5}, "starts at an integer step"),
        ({"levels": 20}, "levels must be a list of Level"),
        ({"levels": []}, "levels must be a list of Level"),
        ({"levels": [0.5, 0.1]}, "levels must be a list of Level"),
        ({"levels": [Level(0.0, 1.0), Level(1.0, 0.0)], "steps": 3}, "levels are given in place of steps"),
        ({"start": "5"}, "start must be a time"),
    ],
    ids=str,
)
def test_arguments_of_sample_that_make_no_sense(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run.sample(**{"count": 2, **options})


def test_levels_and_arrays_are_taken_as_they_are(run: Run) -> None:
    levels = run.assembly.grid.levels(run.assembly.schedule, 4)
    assert torch.equal(run.sample(2, levels=levels), run.sample(2, steps=4))
    x = np.array([[0.5, 0.1], [0.2, -0.3]])
    assert torch.equal(run.sample(2, x=x, start=9, steps=3), run.sample(2, x=torch.tensor(x).float(), start=9, steps=3))
