"""Validation as a whole: recursion, all faults at once, trial objects, nested components."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from diffkit import load_recipe
from diffkit.config import ComponentSpec
from diffkit.errors import RecipeError


def refused(source: object, *sets: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, sets)  # type: ignore[arg-type]
    return caught.value


def messages(error: RecipeError) -> str:
    return "\n".join(fault.render() for fault in error.errors)


def test_all_faults_are_told_at_once(base: str) -> None:
    """Options, names, missing keys, constructors and checks between components, in the order of the text."""
    text = base.replace("beta_end: 0.6", "beta_end: 6").replace("network: tiny", "network: {name: tiny, width: 7}")
    text = text.replace("steps: 100", "stps: 100").replace("batch_size: 8", "batch_size: 8, accumulate: 3")
    error = refused(text + "evaluate: [frechett]\ntrackers: [{name: tensorboard, x: 1}]\n")
    assert [fault.code for fault in error.errors] == ["DK106", "DK107", "DK104", "DK118", "DK102", "DK104"]
    assert [fault.where.line for fault in error.errors if fault.where] == [3, 5, 6, 6, 8, 9]
    assert error.exit_code == 3


def test_a_fault_in_one_part_does_not_hide_those_of_parts_that_need_it(base: str) -> None:
    text = base.replace("data: points", "data: pointss").replace("network: tiny", "network: {name: tiny, with: 3}")
    assert [fault.code for fault in refused(text).errors] == ["DK102", "DK104"]


def test_validation_recurses_into_nested_components(base: str) -> None:
    """torchtune's validator looks at top-level nodes only, and lets missing arguments pass."""
    text = base.replace("sampler: ancestral", "sampler: {name: wrapper, inner: {name: ancestral, variance: no}}")
    (fault,) = refused(text).errors
    assert fault.where is not None
    assert fault.where.path == "sample.sampler.inner.variance"
    assert "sample.sampler.inner is missing" in messages(refused(base, "sample.sampler=wrapper"))


def test_nested_components_and_tuples_of_them(base: str) -> None:
    recipe = load_recipe(base, ["sample.sampler={name: wrapper, inner: shy, others: [ancestral, {name: learned}]}"])
    options = recipe.sample.sampler.options
    assert options["inner"] == ComponentSpec("sampler", "shy", {}, "standin")
    assert [one.name for one in options["others"]] == ["ancestral", "learned"]


def test_a_component_may_be_named_with_its_plugin(base: str) -> None:
    assert load_recipe(base, ["schedule=ddpm/linear"]).schedule.name == "linear"
    error = refused(base, "schedule=nope/linear")
    assert error.exit_code == 4
    assert error.errors[0].where is not None


@pytest.mark.parametrize("metric", ["kwargs", "named", "unannotated", "own"])
def test_components_that_cannot_be_configured_are_plugin_errors(base: str, metric: str) -> None:
    error = refused(base, f"evaluate=[{metric}]")
    assert (error.exit_code, error.errors[0].code) == (4, "DK250")


def test_mixed_faults_exit_as_an_invalid_recipe(base: str) -> None:
    assert refused(base, "evaluate=[kwargs]", "seed=-1").exit_code == 3


def test_constructors_speak_at_the_line_of_their_option(base: str) -> None:
    (fault,) = refused(base, "network={name: tiny, act: relu, width: 7}").errors
    assert fault.code == "DK107"
    assert fault.where is not None
    assert fault.where.text[fault.where.column - 1 :].startswith("7}")


def test_a_constructor_that_fails_otherwise_is_told_with_its_place(base: str) -> None:
    error = refused(base, "network={name: tiny, width: 666}")
    assert (error.errors[0].code, error.exit_code) == ("DK252", 4)
    assert "ZeroDivisionError" in error.errors[0].message


def test_a_component_that_asks_for_what_comes_later(base: str) -> None:
    assert refused(base, "schedule=greedy").errors[0].code == "DK251"


def test_what_is_injected_cannot_be_set(base: str) -> None:
    (fault,) = refused(base, "network={name: tiny, shape: 3}").errors
    assert fault.code == "DK104"
    assert "taken from the recipe" in fault.message


def test_networks_are_tried_on_the_meta_device_only(base: str) -> None:
    from diffkit.host import registry

    load_recipe(base, ["network=counting"])
    assert registry().find("network", "counting").load().built == 0  # type: ignore[attr-defined]


def test_absent_data_is_no_fault_of_the_recipe(base: str) -> None:
    recipe = load_recipe(base, ["data=absent"])
    assert recipe.data_error is not None
    assert recipe.data_error.exit_code == 5


def test_the_shape_reaches_the_network(base: str) -> None:
    assert load_recipe(base, ["data=labelled", "network=unet", "network.multipliers=[1]", "network.attention=[]"])
    assert "DK140" in messages(refused(base, "data=labelled", "network={name: unet, attention: [3], multipliers: [1]}"))


def test_weighting_and_times_reach_the_objective_or_are_dead(base: str) -> None:
    recipe = load_recipe(base, ["objective.weighting=snr", "objective.times=stratified"])
    assert recipe.objective.weighting is not None
    assert recipe.objective.weighting.name == "snr"
    (fault,) = refused(base, "objective.name=plain", "objective.weighting=snr").errors
    assert (fault.code, fault.where.path if fault.where else "") == ("DK117", "objective.weighting")
    assert load_recipe(base, ["objective={name: plain, times: stratified}"])


def test_shorthands(base: str) -> None:
    sets = [
        "train.optimizer=adamw",
        "train.lr_schedule=cosine",
        "train.ema=0.9",
        "data.augment=shift",
        "evaluate=[mmd]",
    ]
    recipe = load_recipe(base, sets)
    assert recipe.train.optimizer.name == "adamw"
    assert recipe.train.lr_schedule.name == "cosine"
    assert [ema.decay for ema in recipe.train.ema] == [0.9]
    assert [one.name for one in recipe.data.augment] == ["shift"]
    assert [one.name for one in recipe.evaluate.metrics] == ["mmd"]
    assert load_recipe(base, ["train.ema=null", "train.clip=null", "sample.guidance=null"]).train.ema == ()
    assert load_recipe(base, ["evaluate={metrics: mmd, count: 8}"]).evaluate.count == 8
    named = load_recipe(base, ["train.ema=[{name: a, half_life: 100}, {name: b, power: 3, warmup: false}]"])
    assert [ema.name for ema in named.train.ema] == ["a", "b"]


def test_values_have_the_types_of_the_annotations(base: str) -> None:
    sets = ["data={name: points, box: [0, 1], names: [a], mode: odd, fraction: 0.5, table: {a: 1}}"]
    options = load_recipe(base, sets).data.component.options
    assert options == {"box": (0.0, 1.0), "names": ("a",), "mode": "odd", "fraction": 0.5, "table": {"a": 1}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("box: [0]", "a longer list"),
        ("box: [0, 1, 2]", "a list"),
        ("box: [0, x]", "box.1 must be a number"),
        ("names: a", "did you mean [a]?"),
        ("mode: eve", 'did you mean "even"?'),
        ("fraction: x", "a whole number or a number"),
        ("table: [1]", "must be a mapping"),
        ("table: {a: b}", "table.a must be a whole number"),
        ("count: 3", "at least 4"),
        ("box: [1, 0]", "box must rise"),
    ],
)
def test_wrong_values(base: str, value: str, said: str) -> None:
    error = refused(base, f"data={{name: points, {value}}}")
    assert len(error.errors) == 1
    assert said in messages(error)


LEAVES = ["name", "data", "schedule", "network", "train", "sample", "evaluate", "steps", "linear", "unet", "eps", "mmd"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5) | st.sampled_from(LEAVES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(LEAVES) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = [
    "name",
    "seed",
    "data",
    "data.count",
    "data.augment",
    "data.condition_dropout",
    "codec",
    "schedule",
    "schedule.steps",
]
PATHS += [
    "schedule.beta_end",
    "parameterization",
    "network",
    "network.width",
    "objective",
    "objective.times",
    "requires",
]
PATHS += [
    "objective.weighting",
    "train",
    "train.steps",
    "train.ema",
    "train.optimizer",
    "train.schedule",
    "train.accumulate",
]
PATHS += ["train.warmup", "sample", "sample.sampler", "sample.grid", "sample.steps", "sample.start", "sample.labels"]
PATHS += ["sample.guidance", "evaluate", "evaluate.count", "trackers"]


def told(mapping: dict[str, Any]) -> str:
    try:
        return load_recipe(mapping).name
    except RecipeError as error:
        return error.render()


@given(st.dictionaries(st.sampled_from(PATHS), VALUES, max_size=4))
def test_any_recipe_is_valid_or_refused_with_places(changes: dict[str, object]) -> None:
    """reliability.md row 22: malformed values anywhere give RecipeErrors, never a traceback."""
    mapping: dict[str, Any] = {
        "name": "points",
        "data": {"name": "points"},
        "schedule": {"name": "linear", "steps": 10, "beta_end": 0.6},
        "parameterization": "eps",
        "network": {"name": "tiny"},
        "objective": {},
        "train": {"steps": 100},
        "sample": {"count": 4},
        "evaluate": {"metrics": ["mmd"]},
    }
    for path, value in changes.items():
        section, _, key = path.partition(".")
        if key and isinstance(mapping.get(section), dict):
            mapping[section][key] = value
        elif not key:
            mapping[section] = value
    assert told(mapping)


def test_a_flood_of_unknown_keys_is_cut(base: str) -> None:
    error = refused(base + "".join(f"k{i}: 1\n" for i in range(1000)))
    assert len(error.errors) == 51
    assert error.errors[-1].message == "950 more unknown keys follow"
