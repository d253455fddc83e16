"""`sample.preset`: what a preset fills, what wins over it, and the other sampler of a request."""

from __future__ import annotations

import pytest
import torch

from diffkit import Recipe, RecipeError, assemble, build, load_recipe
from diffkit.errors import UsageError
from diffkit.recipe.effective import effective_yaml
from diffkit.recipe.load import of_preset
from diffkit.runs.planning import SampleRequest, plan_request

RECIPE = """
name: preset
data: {name: mixture, layout: ring, count: 8}
schedule: {name: scaled-linear, steps: 1000, beta_start: 0.00085, beta_end: 0.012}
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
train: {steps: 10}
"""


def recipe(*sets: str) -> Recipe:
    return load_recipe(RECIPE, ["sample.preset=diffusers", *sets])


def test_a_preset_chooses_grid_start_and_options_of_the_sampler() -> None:
    """The start is z itself, not sigma z: diffusers' init_noise_sigma 1."""
    made = recipe("sample.sampler=unipc", "sample.steps=20")
    assert made.sample.sampler.options == {"order": 2}
    assert made.sample.grid.options == {"intervals": "n+1", "rounding": "half-even"}
    plan = plan_request(assemble(made), SampleRequest(count=1))
    assert float(plan.start(torch.ones(1))) == pytest.approx(1.0)
    plain = plan_request(assemble(load_recipe(RECIPE)), SampleRequest(count=1))
    assert float(plain.start(torch.ones(1))) == pytest.approx(float(plain.levels[0].sigma))


def test_what_is_stated_wins_and_a_flag_wins_over_a_file() -> None:
    kept = recipe("sample.grid={name: leading, offset: 0}", "sample.start_scale=sigma", "sample.sampler=ddim").sample
    assert (kept.grid.options["offset"], kept.grid.options["end"], kept.start_scale) == (0, "first", "sigma")
    stated = RECIPE + "sample: {sampler: ddim, preset: diffusers, grid: quadratic}\n"
    assert load_recipe(stated).sample.grid.name == "quadratic"
    assert load_recipe(stated, ["sample.preset=diffusers"]).sample.grid.name == "leading"
    assert load_recipe(effective_yaml(load_recipe(stated))).sample.grid.name == "quadratic"
    with pytest.raises(RecipeError, match="sampler dpmpp-3m has no preset diffusers") as caught:
        recipe("sample.sampler=dpmpp-3m")
    assert caught.value.code == "DK129"


def test_a_run_with_a_preset_takes_that_of_another_sampler_or_none() -> None:
    """In the recipe of a run every key is stated."""
    text = effective_yaml(recipe("sample.sampler=ddim", "sample.steps=20"))
    whole = {"sample": {"preset": "diffusers", "sampler": {"name": "ddim"}}}

    def changed(*overrides: str) -> Recipe:
        return load_recipe(text, of_preset(whole, overrides))

    assert changed("sample.preset=diffusers").sample.grid.name == "leading"
    euler = changed("sample.sampler=euler").sample
    assert (euler.grid.name, euler.grid.options, euler.start_scale) == ("linspace", {"rounding": "none"}, "sigma")
    none = changed("sample.preset=null", "sample.grid=quadratic").sample
    assert (none.grid.name, none.start_scale, none.preset) == ("quadratic", "sigma", None)
    assert changed("sample.preset=null").sample.grid.name == "trailing"


def test_another_sampler_of_a_request_has_its_own_grid() -> None:
    assembly = assemble(recipe("sample.sampler=ddim", "sample.steps=20"))
    chosen = plan_request(assembly, SampleRequest(count=1, sampler="unipc"))
    own = assemble(recipe("sample.sampler=unipc", "sample.steps=20"))
    assert (chosen.sampler, chosen.levels, chosen.start_scale) == (own.sampler, own.levels(), "unit")
    spaced = plan_request(assembly, SampleRequest(count=1, sampler="euler", grid={"name": "leading", "offset": 0}))
    assert (float(assembly.schedule.time(spaced.levels[0])), spaced.start_scale) == (951.0, "unit")
    usual = plan_request(assembly, SampleRequest(count=1, sampler="dpmpp-3m"))
    assert (usual.levels[0], usual.start_scale) == (assembly.schedule.noise, "sigma")


def test_a_grid_that_ends_at_the_first_step_has_one_step_less() -> None:
    grid, schedule = build("grid", "leading", end="first"), build("schedule", "linear", steps=10)
    assert grid.times(schedule, 9) == [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert grid.levels(schedule, 3)[-1] == schedule.level(1.0)
    with pytest.raises(UsageError, match="use at most 9 steps"):
        grid.levels(schedule, 10)
