"""`sample.preset`: what a preset fills, what wins over it, and the other sampler of a request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from diffkit import Recipe, RecipeError, assemble, build, load_recipe
from diffkit.errors import UsageError
from diffkit.recipe.effective import effective_yaml
from diffkit.recipe.load import of_preset
from diffkit.runs.planning import SampleRequest, evaluation_plan, plan_request
from diffkit.runs.sampling import SamplingPlan

RECIPE = """
name: preset
data: {name: mixture, layout: ring, count: 8}
schedule: {name: scaled-linear, steps: 1000, beta_start: 0.00085, beta_end: 0.012}
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
train: {steps: 10}
"""
FIRST = ("sample.sampler=ddim", "sample.steps=20", "evaluate.metrics=[sliced-wasserstein]")


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


def test_an_option_of_the_same_sampler_changes_nothing_else() -> None:
    """Neither the grid nor other options of the sampler, whether a request states it or an override."""
    chosen = ("sample.sampler=ddim", "sample.grid={name: leading, offset: 0, end: clean}", "sample.steps=20")
    made = recipe(*chosen)
    assembly = assemble(made)
    whole = plain_recipe(made)
    for sampler in ("ddim", {"name": "ddim", "eta": 0.5}):
        plan = plan_request(assembly, SampleRequest(count=1, sampler=sampler))
        assert (plan.levels, plan.start_scale) == (assembly.levels(), "unit")
    again = load_recipe(whole, of_preset(whole, ["sample.sampler={name: ddim, eta: 0.5}"])).sample
    assert (again.grid.options["offset"], again.grid.options["end"], again.start_scale) == (0, "clean", "unit")
    assert again.sampler.options["eta"] == 0.5
    anew = load_recipe(whole, of_preset(whole, ["sample.preset=diffusers", "sample.sampler=ddim"])).sample
    assert (anew.grid.options["offset"], anew.grid.options["end"]) == (1, "first")
    second = plan_request(
        assemble(recipe("sample.sampler={name: unipc, corrector: false}")), SampleRequest(count=1, sampler="unipc")
    )
    assert second.sampler == build("sampler", "unipc", order=2, corrector=False)


def test_another_sampler_of_the_evaluation_has_the_preset_too() -> None:
    """As a request for this sampler. ddim starts at unit scale, euler on linspace at that of the first level."""

    def both(*sets: str) -> tuple[SamplingPlan, SamplingPlan]:
        made = assemble(recipe(*FIRST, *sets))
        own = made.recipe.evaluate
        asked = SampleRequest(count=1, sampler=own.sampler and own.sampler.name, grid=own.grid and own.grid.name)
        levels = made.evaluation_levels()
        return evaluation_plan(made, count=1, seed=0, levels=levels), plan_request(made, asked)

    for sets in (
        ["evaluate.sampler=euler"],
        ["evaluate.sampler=dpmpp-2m"],
        ["evaluate.sampler=euler", "sample.grid=trailing"],
        ["evaluate.sampler=dpmpp-2m", "evaluate.grid={name: karras, rounding: none}"],
        ["evaluate.sampler=dpmpp-3m"],
        ["evaluate.sampler={name: ddim, eta: 1.0}"],
        [],
    ):
        found, wanted = both(*sets)
        assert (found.levels, found.start_scale) == (wanted.levels, wanted.start_scale), sets
        assert found.network_time == wanted.network_time, sets
    whole = effective_yaml(recipe(*FIRST, "evaluate.sampler=euler"))
    assert yaml.safe_load(effective_yaml(load_recipe(whole))) == yaml.safe_load(whole)
    assert both("evaluate.sampler=euler")[0].start_scale == "sigma"


def test_a_grid_beside_the_same_sampler_is_that_of_the_preset() -> None:
    """DDPM and Euler a are one sampler: `--sampler ancestral --grid linspace` is Euler a on a run of DDPM too."""
    made = recipe("sample.sampler=ancestral")
    plan = plan_request(assemble(made), SampleRequest(count=1, sampler="ancestral", grid="linspace"))
    assert (assemble(made).recipe.sample.start_scale, plan.start_scale) == ("unit", "sigma")
    whole = plain_recipe(made)
    again = load_recipe(whole, of_preset(whole, ["sample.sampler=ancestral", "sample.grid=linspace"])).sample
    assert (again.start_scale, again.grid.options["rounding"]) == ("sigma", "none")


@pytest.mark.parametrize("sampler", ["plms", "ancestral", "dpmpp-2m", "euler"])
def test_a_grid_that_was_chosen_stays_under_another_sampler(sampler: str) -> None:
    """As with `from_config` of diffusers: `trailing` stays, which a schedule without signal at its end needs."""
    made = recipe("sample.sampler=ddim", "sample.grid=trailing", "sample.steps=20")
    whole = plain_recipe(made)
    plan = plan_request(assemble(made), SampleRequest(count=1, sampler=sampler))
    assert float(assemble(made).schedule.time(plan.levels[0])) == 1000.0
    assert load_recipe(whole, of_preset(whole, [f"sample.sampler={sampler}"])).sample.grid.name == "trailing"
    stated = ["sample.grid={name: leading, offset: 1}", f"sample.sampler={sampler}"]
    assert load_recipe(whole, of_preset(whole, stated)).sample.grid.name == "leading"


def test_options_of_a_grid_that_were_chosen_stay_where_the_other_preset_has_them() -> None:
    made = recipe("sample.sampler=ddim", "sample.grid={name: leading, offset: 0, end: clean}")
    whole = plain_recipe(made)
    plms = load_recipe(whole, of_preset(whole, ["sample.sampler=plms"])).sample.grid.options
    assert (plms["offset"], plms["end"]) == (0, "clean")
    ddpm = load_recipe(whole, of_preset(whole, ["sample.sampler=ancestral"])).sample.grid.options
    assert (ddpm["offset"], ddpm.get("end", "clean"), ddpm.get("intervals", "n")) == (0, "clean", "n")


def plain_recipe(made: Recipe) -> dict[str, Any]:
    """The whole recipe as plain values, as that of a run."""
    found: Any = yaml.safe_load(effective_yaml(made))
    return found


def test_a_grid_that_ends_at_the_first_step_has_one_step_less() -> None:
    grid, schedule = build("grid", "leading", end="first"), build("schedule", "linear", steps=10)
    assert grid.times(schedule, 9) == [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert grid.levels(schedule, 3)[-1] == schedule.level(1.0)
    with pytest.raises(UsageError, match="use at most 9 steps"):
        grid.levels(schedule, 10)
