"""One fault in a valid recipe is reported as exactly one error, at the place of the fault."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from diffkit import RecipeError, load_recipe

RECIPE: dict[str, Any] = {
    "name": "blocks",
    "seed": 1,
    "requires": {"diffkit": ">=0"},
    "data": {
        "name": "digits",
        "labels": True,
        "augment": [{"name": "flip"}],
        "condition_dropout": 0.1,
    },
    "codec": {"name": "affine", "scale": 1.0},
    "schedule": {"name": "linear", "steps": 20, "beta_end": 0.6},
    "parameterization": {"name": "eps"},
    "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "groups": 4},
    "objective": {"name": "simple", "weighting": {"name": "uniform"}, "times": {"name": "uniform"}},
    "train": {
        "steps": 40,
        "batch_size": 8,
        "accumulate": 2,
        "optimizer": {"name": "adam", "lr": 0.001},
        "lr_schedule": {"name": "cosine", "warmup": 5},
        "strategy": {"name": "auto"},
        "clip": 1.0,
        "ema": [{"name": "slow", "decay": 0.5}],
        "precision": "fp32",
        "keep": 3,
        "workers": 0,
    },
    "sample": {
        "sampler": {"name": "ancestral", "variance": "small"},
        "grid": {"name": "linspace"},
        "steps": 20,
        "count": 4,
        "labels": [0, 1],
        "guidance": [{"name": "cfg", "scale": 2.0}],
        "batch_size": 4,
    },
    "evaluate": {
        "metrics": [{"name": "sliced-wasserstein"}],
        "sampler": {"name": "ancestral"},
        "grid": {"name": "trailing"},
        "steps": 5,
        "count": 16,
        "batch_size": 8,
    },
    "callbacks": [{"name": "weight-norms"}],
    "trackers": [{"name": "tensorboard"}],
}


def paths(tree: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in steps:
        yield from paths(item, (*path, key))


def at(tree: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def faults() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each place of the recipe with each kind of fault that it can have."""
    for path in paths(RECIPE):
        value, shown = at(RECIPE, path), ".".join(map(str, path))
        changes: dict[str, Any] = {}
        if isinstance(value, dict):
            if path != ("requires",):
                changes["an unknown key"] = {**value, "colour": 1}
            changes["a number in place of a mapping"] = 3
            if "name" in value:
                changes["an unknown name"] = {**value, "name": "nothing-like-this"}
                changes["a name of another type"] = {**value, "name": 7}
        elif isinstance(value, list):
            changes["a mapping of nothing known"] = [*value, {"colour": 1}]
        elif path[-1] != "name":
            changes["text"] = "nothing-like-this" if path != ("requires", "diffkit") else "?"
            changes["a list"] = [[1]]
            if isinstance(value, int | float):
                changes["a negative number"] = -3
        elif len(path) == 1:
            changes["a bad name"] = "../x"
        if path[-1] == "scale" and path[0] == "codec":
            del changes["a negative number"]  # which is valid
        if "decay" in (value if isinstance(value, dict) else ()):
            del changes["an unknown name"]  # an average may have any name
        for what, change in changes.items():
            tree = copy.deepcopy(RECIPE)
            at(tree, path[:-1])[path[-1]] = change
            yield f"{shown}: {what}", tree


CASES = dict(faults())


def test_the_recipe_is_valid() -> None:
    assert load_recipe(RECIPE).warnings == ()
    assert len(CASES) > 150


@pytest.mark.parametrize("name", CASES)
def test_one_fault_is_one_error(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(CASES[name])
    assert len(caught.value.errors) == 1, "\n\n".join(error.render() for error in caught.value.errors)
    place = name.partition(":")[0]
    where = caught.value.errors[0].where
    assert where is not None
    assert where.path.startswith(place) or place.startswith(where.path), where.path


@pytest.mark.parametrize(
    "override",
    [
        "train.accumulate=3",
        "sample.steps=30",
        "train.lr_schedule.warmup=50",
        "data.condition_dropout=0.0",
        "train.ema=[{name: slow}]",
        "evaluate.metrics=[]",
    ],
)
def test_the_value_that_an_error_advises_is_valid(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPE, [override])
    fault = caught.value.errors[0]
    assert fault.where is not None
    key, _, value = str(fault.fix).partition(", or ")[0].partition(": ")
    section, _, last = fault.where.path.rpartition(".")
    path = key if "." in key else f"{fault.where.path}.{key}" if last.isdecimal() else f"{section}.{key}"
    load_recipe(RECIPE, [override, f"{path}={value}"])
