"""From recipes to objects."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_overloads, get_type_hints

import pytest
import torch
from torch import nn

from diffkit import assemble, build, entries, load_recipe
from diffkit.data import DataSpec
from diffkit.errors import DataError, DiffkitError, PluginError, RecipeError
from diffkit.host import registry
from diffkit.host.entry import KINDS
from diffkit.host.registry import Registry
from diffkit.network import Shape
from diffkit.recipe.contents import named
from diffkit.sampler import sample

ROOT = Path(__file__).parents[3]


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


def test_each_component_is_built_once(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation builds; an assembly takes what was built, and builds modules from the resolved classes."""
    made: list[str] = []
    names = {"schedule": "linear", "parameterization": "two-heads", "objective": "simple", "sampler": "wrapper"}
    for kind, name in {**names, "network": "tiny", "grid": "trailing", "metric": "mmd", "data": "points"}.items():
        cls = registry().find(kind, name).load()
        init = cls.__init__  # type: ignore[misc]

        def counted(self: object, *args: object, _init: Any = init, _name: str = name, **more: object) -> None:
            made.append(_name)
            _init(self, *args, **more)

        monkeypatch.setattr(cls, "__init__", functools.wraps(init)(counted))
    recipe = load_recipe(
        base, ["parameterization=two-heads", "sample.sampler={name: wrapper, inner: shy}", "evaluate=[mmd]"]
    )
    assert sorted(made) == sorted(["points", "linear", "two-heads", "tiny", "simple", "wrapper", "trailing", "mmd"])
    monkeypatch.setattr(Registry, "find", lambda *_: pytest.fail("a component is looked up again"))
    made.clear()
    one, other = assemble(recipe), assemble(recipe)
    assert made == ["tiny", "tiny"]
    assert one.schedule is other.schedule
    assert one.sampler is other.sampler


def test_assemblies_share_no_state(base: str) -> None:
    """Modules, what holds one, and trackers belong to one assembly."""
    sets = ["schedule=drifting", "parameterization=relative", "objective=vlb", "trackers=[tensorboard]"]
    recipe = load_recipe(base, sets)
    one, other = assemble(recipe), assemble(recipe)
    assert one.network is not other.network
    assert one.schedule is not other.schedule
    assert one.parameterization.schedule is one.schedule  # type: ignore[attr-defined]
    assert one.trackers[0] is not other.trackers[0]
    assert one.data is other.data
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in one.network.parameters():
            parameter.fill_(7.0)
    assert all((parameter != 7.0).all() for parameter in other.network.parameters())
    assert all((parameter != 7.0).all() for parameter in assemble(recipe).network.parameters())


def test_what_is_random_in_a_constructor_is_a_function_of_the_seed(base: str) -> None:
    sets = ["data.augment=noisy"]
    one, other = (assemble(load_recipe(base, sets)) for _ in range(2))
    assert one.augment[0].offset == other.augment[0].offset  # type: ignore[attr-defined]
    listed = assemble(load_recipe(base, ["data.augment=[noisy]"]))
    assert listed.augment[0].offset == one.augment[0].offset  # type: ignore[attr-defined]


def test_an_augmentation_may_require_the_shape(base: str) -> None:
    made = assemble(load_recipe(base, ["data={name: labelled, augment: fitted}"]))
    assert made.augment[0].shape == made.shape  # type: ignore[attr-defined]


def test_sampling_may_start_before_the_end(base: str) -> None:
    made = assemble(load_recipe(base, ["sample.start=8", "sample.allow_mismatch=true"]))
    whole = assemble(load_recipe(base))
    assert made.steps == 8
    assert made.levels() == whole.levels()[2:]


def test_absent_data_fails_at_assembly(base: str) -> None:
    with pytest.raises(DataError):
        assemble(load_recipe(base, ["data=absent"]))


def test_data_that_appears_after_the_validation(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built without the shape is built again with it."""
    recipe = load_recipe(base, ["data=absent", "sample.guidance=[null-guided]"])
    absent = registry().find("data", "absent").load()
    monkeypatch.setattr(absent, "spec", DataSpec(2))
    made = assemble(recipe)
    assert made.guidance[0].shape == made.shape == Shape(2, 2)  # type: ignore[attr-defined]


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


def test_build_builds_once_and_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = registry().find("network", "counting").load()
    monkeypatch.setattr(counting, "built", 0)
    build("network", "counting", shape=Shape(2, 2))
    assert counting.built == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("parameterization", "mu", {"schedule": "linear"}, "argument `schedule` must be a Schedule, got str"),
        ("network", "tiny", {"shape": (2, 2)}, "argument `shape` must be a Shape, got tuple"),
        ("parameterization", "two-heads", {"inner": 3}, "argument `inner` must be a Parameterization, got int"),
        ("sampler", "wrapper", {"inner": "shy", "others": [3]}, "argument `others` must be a list of Sampler, got int"),
        ("network", "tiny", {}, "network tiny requires a `shape`, but none is given"),
        ("network", "tiny", {"shape": Shape(2, 2), "width": 7}, "width is 7, which is odd"),
        (
            "network",
            "tiny",
            {"shape": Shape(2, 2), "width": torch.ones(1)},
            "`width` must be a number, text, list or mapping, got Tensor",
        ),
    ],
)
def test_mistakes_in_a_call_of_build(kind: Any, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffkitError) as caught:
        build(kind, name, **options)
    assert message in str(caught.value)


def test_entries() -> None:
    assert {"linear", "scaled-linear"} <= {one.name for one in entries("schedule")}
    assert {one.kind for one in entries()} >= {"schedule", "network", "metric"}
    with pytest.raises(DiffkitError):
        entries("schedul")


def test_what_a_recipe_names_is_known_without_loading_it(base: str, tmp_path: Path) -> None:
    found = {path: one.name for path, one in named(base, ["evaluate=[mmd]", "data.augment=shift", "codec=nope"])}
    assert found == {
        "data": "points",
        "data.augment.0": "shift",
        "schedule": "linear",
        "parameterization": "eps",
        "network": "tiny",
        "objective": "simple",
        "train.optimizer": "adam",
        "train.lr_schedule": "constant",
        "train.strategy": "auto",
        "sample.sampler": "ancestral",
        "sample.grid": "trailing",
        "evaluate.metrics.0": "mmd",
    }


TYPED = """
from diffkit import build
reveal_type(build("schedule", "linear"))
reveal_type(build("sampler", "ancestral", variance="large"))
build("shedule", "linear")
"""


@pytest.mark.slow
def test_build_is_typed_by_kind(tmp_path: Path) -> None:
    """A type checker has the base class of each kind, and refuses a kind that is misspelled."""
    file = tmp_path / "typed.py"
    file.write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(file)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    lines = done.stdout.splitlines()
    assert [line.partition("Revealed type is ")[2] for line in lines if "Revealed" in line] == [
        '"diffkit.schedule.Schedule"',
        '"diffkit.sampler.Sampler[Any]"',
    ]
    assert [line for line in lines if "No overload variant of" in line and "typed.py:5" in line]


def test_every_kind_has_an_overload() -> None:
    kinds = {get_type_hints(one)["kind"] for one in get_overloads(build)}
    assert {name for kind in kinds for name in get_args(kind)} == {kind.name for kind in KINDS}
