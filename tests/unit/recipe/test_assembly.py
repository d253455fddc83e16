"""From recipes to objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diffkit import assemble, build, entries, load_recipe
from diffkit.errors import DataError, DiffkitError, PluginError, RecipeError
from diffkit.network import Shape
from diffkit.recipe.contents import named
from diffkit.sampler import sample


def test_the_parts_of_an_assembly(base: str) -> None:
    sets = ["data.augment=shift", "evaluate={metrics: mmd, steps: 5, sampler: shy}", "sample.guidance=[clip]"]
    made = assemble(load_recipe(base, sets))
    assert made.shape == Shape(2, 2, (), None)
    assert made.spec.shape == (2,)
    assert made.model.network is made.network
    assert made.model.schedule is made.schedule
    assert (made.steps, len(made.levels()), len(made.levels(4))) == (10, 11, 5)
    assert (len(made.evaluation_levels()), type(made.evaluation_sampler).__name__) == (6, "Shy")
    assert made.evaluation_grid is made.grid
    assert [type(one).__name__ for one in (*made.augment, *made.guidance, *made.metrics)] == ["Shift", "Clip", "MMD"]
    x = sample(made.model, made.sampler, made.levels(), torch.zeros(3, 2))
    assert torch.isfinite(x).all()


def test_components_get_what_they_ask_for(base: str) -> None:
    made = assemble(
        load_recipe(base, ["objective={name: simple, weighting: vlb, times: stratified}", "parameterization=relative"])
    )
    assert made.objective.weighting.schedule is made.schedule  # type: ignore[attr-defined]
    assert type(made.objective.times).__name__ == "Stratified"  # type: ignore[attr-defined]
    assert made.parameterization.schedule is made.schedule  # type: ignore[attr-defined]


def test_weights_are_a_function_of_the_seed(base: str) -> None:
    def weights(*sets: str) -> torch.Tensor:
        return nn.utils.parameters_to_vector(assemble(load_recipe(base, sets)).network.parameters())

    before = torch.random.get_rng_state()
    first = weights()
    torch.manual_seed(5)
    torch.testing.assert_close(weights(), first, rtol=0, atol=0)
    torch.testing.assert_close(weights("sample.count=1", "data.augment=shift"), first, rtol=0, atol=0)
    assert not torch.equal(weights("seed=1"), first)
    torch.random.set_rng_state(before)
    weights()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampling_may_start_before_the_end(base: str) -> None:
    made = assemble(load_recipe(base, ["sample.start=8", "sample.allow_mismatch=true"]))
    whole = assemble(load_recipe(base))
    assert made.steps == 8
    assert made.levels() == whole.levels()[2:]


def test_absent_data_fails_at_assembly(base: str) -> None:
    with pytest.raises(DataError):
        assemble(load_recipe(base, ["data=absent"]))


def test_build_validates_as_a_recipe_does() -> None:
    linear = build("schedule", "linear", steps=10, beta_end=0.5)
    assert (linear.steps, linear.beta_end) == (10, 0.5)
    assert build("schedule", "ddpm/linear").steps == 1000
    for options, code in (({"stepz": 1}, "DK104"), ({"steps": 0}, "DK106"), ({"steps": "10"}, "DK106")):
        with pytest.raises(RecipeError) as caught:
            build("schedule", "linear", **options)
        assert caught.value.code == code
    with pytest.raises(RecipeError) as caught:
        build("schedule", "linear", steps=0, beta_end=2)
    assert len(caught.value.errors) == 2
    with pytest.raises(RecipeError, match="liner"):
        build("schedule", "liner")


def test_build_takes_objects_for_what_a_recipe_injects_or_nests() -> None:
    linear = build("schedule", "linear", steps=10)
    assert build("parameterization", "mu", schedule=linear).schedule is linear
    network = build("network", "tiny", shape=Shape(2, 2), width=4)
    assert next(network.parameters()).device.type == "cpu"
    eps = build("parameterization", "eps")
    assert build("parameterization", "two-heads", inner=eps).inner is eps
    assert type(build("parameterization", "two-heads", inner="x0").inner).__name__ == "X0"
    assert (
        type(build("sampler", "wrapper", inner={"name": "ancestral", "variance": "large"}).inner).__name__
        == "Ancestral"
    )
    with pytest.raises(PluginError) as caught:
        build("parameterization", "mu")
    assert caught.value.code == "DK251"
    with pytest.raises(RecipeError, match="inner is missing"):
        build("sampler", "wrapper")


def test_entries() -> None:
    assert {"linear", "scaled-linear"} <= {one.name for one in entries("schedule")}
    assert {one.kind for one in entries()} >= {"schedule", "network", "metric"}
    with pytest.raises(DiffkitError):
        entries("schedul")


def test_what_a_recipe_names_is_known_without_loading_it(base: str, tmp_path: Path) -> None:
    found = {path: one.name for path, one in named(base, ["evaluate=[mmd]", "data.augment=shift", "codec=nope"])}
    assert found == {
        "data": "points",
        "data.augment": "shift",
        "schedule": "linear",
        "parameterization": "eps",
        "network": "tiny",
        "objective": "simple",
        "sample.sampler": "ancestral",
        "sample.grid": "trailing",
        "evaluate.metrics.0": "mmd",
    }
