"""The whole recipe: defaults, origins, round trip, hash, difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from diffkit import load_recipe
from diffkit.host.discovery import candidate
from diffkit.host.loader import load
from diffkit.host.registry import Registry, _state
from diffkit.recipe.effective import difference, effective, effective_yaml, inline, origins, recipe_hash
from diffkit.recipe.yaml import parse

VARIANTS: list[list[str]] = [
    [],
    ["parameterization=two-heads", "sample.sampler={name: wrapper, inner: shy, others: [ancestral]}"],
    ["objective={name: simple, weighting: snr, times: stratified}"],
    ["data={name: points, names: ['on', '1', 'a b', ''], mode: odd, table: {'x y': 1}, augment: shift}"],
    ["train.ema=[{name: a, half_life: 10}, {name: b, decay: 0.5, warmup: true}]", "train.clip=null"],
    ["train.optimizer={lr: 1, eps: 1e-20}", "requires={diffkit: '>=0.1'}"],
    ["schedule=ddpm/linear", "evaluate={metrics: [mmd, choosy], steps: 5}", "sample.guidance=[clip]"],
    ["train.ema=null"],
]


@pytest.mark.parametrize("sets", VARIANTS, ids=range(len(VARIANTS)))
def test_the_effective_recipe_is_the_same_recipe(base: str, sets: list[str]) -> None:
    recipe = load_recipe(base, sets)
    text = effective_yaml(recipe)
    again = load_recipe(text)
    assert difference(recipe, again) == ()
    assert recipe_hash(again) == recipe_hash(recipe)
    assert effective_yaml(again).replace(" ", "").count("default") == 0
    assert yaml.safe_load(text) == effective(recipe)  # YAML 1.1 readers agree
    assert parse(text, "f").plain() == effective(recipe)


def test_every_value_has_an_origin(base: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(base)
    found = origins(load_recipe(file, ["train.steps=7", "sample.sampler.variance=large"]))
    assert {path: (found[path].value, found[path].origin) for path in (
        "name", "data.name", "data.count", "schedule.steps", "parameterization.name", "seed", "train.steps",
        "train.optimizer.lr", "sample.sampler.name", "sample.sampler.variance", "codec.name", "objective.times.name",
    )} == {
        "name": ("points", f"{file}:1"),
        "data.name": ("points", f"{file}:2"),
        "data.count": (16, "default (standin.py)"),
        "schedule.steps": (10, f"{file}:3"),
        "parameterization.name": ("eps", f"{file}:4"),
        "seed": (0, "default"),
        "train.steps": (7, "--set"),
        "train.optimizer.lr": (2e-4, "default (diffkit)"),
        "sample.sampler.name": ("ancestral", f"{file}:7"),
        "sample.sampler.variance": ("large", "--set"),
        "codec.name": ("identity", "default"),
        "objective.times.name": ("uniform", "default"),
    }  # fmt: skip


def test_default_instances_are_told_by_their_registered_names(base: str) -> None:
    whole = effective(load_recipe(base, ["parameterization=two-heads"]))
    assert whole["parameterization"] == {"name": "two-heads", "inner": {"name": "velocity"}}
    assert whole["objective"]["times"] == {"name": "uniform"}


def test_the_hash_is_of_the_meaning(base: str) -> None:
    recipe = load_recipe(base)
    explicit = load_recipe(base, ["parameterization={name: eps}", "seed=0", "train.optimizer.lr=0.0002"])
    assert recipe_hash(recipe) == recipe_hash(explicit)
    assert recipe_hash(recipe) != recipe_hash(load_recipe(base, ["seed=1"]))
    assert len(recipe_hash(recipe)) == 64


def test_a_whole_number_for_a_real_one_is_the_same_value(base: str) -> None:
    assert recipe_hash(load_recipe(base, ["train.clip=1"])) == recipe_hash(load_recipe(base, ["train.clip=1.0"]))


def test_difference(base: str) -> None:
    changes = difference(
        load_recipe(base),
        load_recipe(base, ["seed=3", "network.width=4", "schedule=zero", "parameterization=velocity"]),
    )
    values = {c.path: tuple(value and value.value for value in (c.before, c.after)) for c in changes}
    assert values["seed"] == (0, 3)
    assert values["network.width"] == (8, 4)
    assert values["schedule.beta_end"] == (0.6, None)
    assert values["schedule.name"] == ("linear", "zero")


OTHER = """
from diffkit.host import Entry, hookimpl

@hookimpl
def diffkit_components():
    yield Entry("schedule", "zero", "diffkit.ddpm.schedule:Linear", "another one of that name")
"""


def test_names_that_two_plugins_offer_are_written_in_full(
    base: str, tmp_path: Path, standins: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.py").write_text(OTHER)
    both = Registry([*standins.plugins, load(candidate(tmp_path / "other.py"))])
    monkeypatch.setattr(_state, "registry", both)
    recipe = load_recipe(base, ["schedule=standin/zero", "parameterization=velocity"])
    assert effective(recipe)["schedule"] == {"name": "standin/zero", "steps": 10}
    assert difference(recipe, load_recipe(effective_yaml(recipe))) == ()


PLAIN = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN |= st.text(st.characters(exclude_categories=["Cs"]))


@given(
    PLAIN
    | st.lists(PLAIN, max_size=3)
    | st.dictionaries(st.text(st.characters(min_codepoint=33, max_codepoint=126)), PLAIN, max_size=3)
)
def test_values_are_written_as_the_reader_reads_them(value: object) -> None:
    assert parse(f"a: {inline(value)}", "f").plain() == {"a": value}
