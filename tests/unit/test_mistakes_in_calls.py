"""Mistakes in calls of the library end in one error with a fix, not in an error of Python or torch."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch

import diffkit
from diffkit import DiffkitError, Model, Shape, assemble, build, load_recipe

SCHEDULE, EPS = build("schedule", "linear", steps=50), build("parameterization", "eps")
MLP = build("network", "mlp", width=8, depth=1, shape=Shape(2, 2, ()))
UNET = build("network", "unet", channels=8, multipliers=[1], blocks=1, groups=4, shape=Shape(1, 1, (8, 8), 10))
POINTS, IMAGES = Model(MLP, EPS, SCHEDULE), Model(UNET, EPS, SCHEDULE)
LEVEL, LEVELS = SCHEDULE.level(10), build("grid", "linspace").levels(SCHEDULE, 5)
X, PICTURES = torch.zeros(2, 2), torch.zeros(2, 1, 8, 8)
ANCESTRAL = build("sampler", "ancestral")

MISTAKES: dict[str, Callable[[], object]] = {
    "a module without c_noise": lambda: Model(torch.nn.Linear(2, 2), EPS, SCHEDULE),
    "swapped arguments of Model": lambda: Model(EPS, MLP, SCHEDULE),
    "a time in place of a level": lambda: POINTS(X, 500),
    "x and level swapped": lambda: POINTS(LEVEL, X),
    "whole numbers": lambda: POINTS(X.long(), LEVEL),
    "NumPy": lambda: POINTS(X.numpy(), LEVEL),
    "other channels": lambda: IMAGES(torch.zeros(2, 3, 8, 8), LEVEL),
    "an image without batch": lambda: IMAGES(torch.zeros(8, 8), LEVEL),
    "names of classes": lambda: IMAGES(PICTURES, LEVEL, label=["dress", "hat"]),
    "labels that are no classes": lambda: IMAGES(PICTURES, LEVEL, label=torch.tensor([3, 99])),
    "real labels": lambda: IMAGES(PICTURES, LEVEL, label=torch.tensor([3.0, 9.0])),
    "labels for other examples": lambda: IMAGES(PICTURES, LEVEL, label=torch.tensor([3, 1, 2])),
    "a number of levels": lambda: diffkit.sample(POINTS, ANCESTRAL, 20, X),
    "sampler and levels swapped": lambda: diffkit.sample(POINTS, LEVELS, ANCESTRAL, X),
    "a generator for the noise": lambda: diffkit.sample(POINTS, ANCESTRAL, LEVELS, X, noise=torch.Generator()),
    "grid and schedule swapped": lambda: build("grid", "linspace").levels(20, SCHEDULE),
    "no name": lambda: build("sampler", None),
    "no recipe": lambda: load_recipe(None),
    "a number as recipe": lambda: load_recipe(3),
    "a name to assemble": lambda: assemble("digits"),
    "a number as the path of a run": lambda: diffkit.open_run(3),
    "a number as the folder of a new run": lambda: diffkit.run("digits", out=3),
    "no device": lambda: diffkit.run("digits", device=None),
    "an unknown resume mode": lambda: diffkit.run("mixture", resume="maybe"),
    "one text as overrides": lambda: load_recipe("digits", "train.steps=3"),
    "a misspelt option": lambda: build("sampler", "ancestral", varianc="small"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_a_fix(name: str) -> None:
    with pytest.raises(DiffkitError) as caught:
        MISTAKES[name]()
    shown = caught.value.render()
    assert "fix: " in shown or "did you mean" in shown or "allowed: " in shown


def test_guidance_needs_no_shape() -> None:
    assert build("guidance", "cfg", scale=5.0).scale == 5.0


def test_texts_and_copies() -> None:
    assert "\n" not in repr(IMAGES)
    estimate = POINTS(X, LEVEL)
    copied = pickle.loads(pickle.dumps(estimate))  # noqa: S301 - made one line above
    assert torch.equal(copied.x0, estimate.x0)
