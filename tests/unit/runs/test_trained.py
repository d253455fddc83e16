"""A run as a library sees it: `diffkit.run`, `diffkit.open_run`, and what they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import diffkit
from diffkit import Run
from diffkit.errors import CheckpointError, UsageError
from diffkit.runs.sampling import Plan, draw
from diffkit.runs.weights import load_weights
from diffkit.sampler import sample
from diffkit.train.ema import Profile, power_of, reconstruct, stored_profiles

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
    assert run.results["metrics"]["sliced-wasserstein"]["samples"] == 16
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
    with pytest.raises(UsageError, match="4 samples"):
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
    plan = Plan(assembly.sampler, levels, (2,), 2)
    draw(spy, plan, assembly.codec, "cpu", given=torch.zeros(2, 2))
    assert asked[0] == 20.0


def test_the_denoiser_is_what_was_trained(run: Run) -> None:
    levels = run.assembly.levels()
    x = torch.zeros(2, 2)
    label = torch.tensor([1, 1])

    def bound(z: torch.Tensor, level: diffkit.Level, /, **cond: torch.Tensor) -> diffkit.Estimate:
        return run.denoiser("raw")(z, level, label=label)

    assert sample(bound, run.assembly.sampler, levels, x).shape == (2, 2)


def test_evaluating_other_metrics_keeps_the_earlier_ones(run: Run) -> None:
    results = run.evaluate(["mmd"], count=12)
    assert {"mmd", "sliced-wasserstein"} <= set(results["metrics"])


def test_a_run_without_a_checkpoint_says_so(run: Run, tmp_path: Path) -> None:
    import shutil

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
        made.denoiser(name)
        return torch.cat([p.detach().flatten().clone() for p in made.assembly.network.parameters()])

    for width, name in ((0.2, "wide"), (0.05, "narrow")):
        torch.testing.assert_close(weights(f"width:{width}"), weights(name), rtol=0, atol=1e-5)
    between, apart = weights("width:0.1"), (weights("wide") - weights("narrow")).norm()
    assert all(0.01 * apart < (between - weights(name)).norm() < apart for name in ("wide", "narrow"))
    for wrong in ("width:", "width:0", "width:0.5", "width:nan", "width:x"):
        with pytest.raises(UsageError, match="no width of a power average"):
            made.denoiser(wrong)


def test_widths_where_the_newest_averages_are_damaged(tmp_path: Path) -> None:
    """As with every other weights: the checkpoint before is taken, and said."""
    train = {"steps": 20, "batch_size": 8, "checkpoint_every": 5, "keep": 4}
    ema = [{"name": "wide", "power": power_of(0.2)}, {"name": "narrow", "power": power_of(0.05)}]
    made = diffkit.run(RECIPE | {"train": {**train, "ema": ema}, "evaluate": {"metrics": []}}, out=tmp_path / "ring")
    (made.directory.checkpoints / "step-00000020" / "ema-wide.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="the checkpoint of step 20 is passed over: ema-wide"):
        assert load_weights(made.directory, made.assembly, "width:0.1") == 15
    want = reconstruct(stored_profiles(made.directory.checkpoints), Profile(15, power_of(0.1)))
    got = made.assembly.network.state_dict()
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
    with pytest.warns(UserWarning, match="the checkpoint of step 4 is passed over: network.safetensors has 0 bytes"):
        diffkit.open_run(made.directory.path).sample(2)
