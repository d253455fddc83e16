"""The recipes that come with the default plugin: valid, whole, and faithful to what they are named after."""

from __future__ import annotations

import pytest
import torch

from diffkit import Recipe, build, load_recipe
from diffkit.host import registry
from diffkit.network import Shape
from diffkit.recipe.effective import difference, effective, effective_yaml

NAMES = ("digits", "digits-conditional", "mixture", "mnist", "fashion-mnist")
PAPER = ("cifar10-ddpm", "lsun256-ddpm", "celebahq256-ddpm")


def parameters(recipe: Recipe, shape: Shape) -> int:
    with torch.device("meta"):
        network = build("network", recipe.network.name, shape=shape, **recipe.network.options)
    return sum(parameter.numel() for parameter in network.parameters())


def test_all_are_tested() -> None:
    essential = {name for name, path in registry().recipes().items() if "ddpm/recipes" in path.as_posix()}
    assert essential == {*NAMES, *PAPER}


@pytest.mark.parametrize("name", [*NAMES, *PAPER])
def test_built_in_recipes_are_valid_and_say_what_they_are(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.warnings == ()
    assert recipe.data_error is None
    assert recipe.text.startswith("# ")
    assert difference(recipe, load_recipe(effective_yaml(recipe))) == ()


def test_cifar10_is_that_of_the_paper() -> None:
    """pains 13: a recipe named after a paper has the values of the paper."""
    recipe = load_recipe("cifar10-ddpm")
    whole = effective(recipe)
    assert parameters(recipe, Shape(3, 3, (32, 32))) == 35_746_307
    assert {key: whole["train"][key] for key in ("steps", "batch_size", "lr_schedule", "clip")} == {
        "steps": 800_000,
        "batch_size": 128,
        "lr_schedule": {"name": "constant", "warmup": 5000},
        "clip": 1.0,
    }
    assert whole["train"]["optimizer"] | {} == {
        "name": "adam",
        "lr": 2e-4,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    assert [(ema["decay"], ema["warmup"]) for ema in whole["train"]["ema"]] == [(0.9999, False)]
    assert whole["schedule"] == {"name": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    assert whole["sample"]["sampler"] == {"name": "ancestral", "variance": "large"}
    assert whole["network"]["dropout"] == 0.1
    assert [one["name"] for one in whole["data"]["augment"]] == ["flip"]


@pytest.mark.parametrize(("name", "steps"), [("lsun256-ddpm", 1_200_000), ("celebahq256-ddpm", 500_000)])
def test_256_is_that_of_the_paper(name: str, steps: int) -> None:
    recipe = load_recipe(name)
    assert parameters(recipe, Shape(3, 3, (256, 256))) == 113_673_219
    assert (recipe.train.steps, recipe.train.batch_size, recipe.train.optimizer.options["lr"]) == (steps, 64, 2e-5)
    assert recipe.sample.sampler.options == {"variance": "small"}
    assert recipe.network.options["dropout"] == 0.0
