"""Checks between the parts of a recipe, before any compute (design.md, section 4)."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffkit import Recipe, load_recipe
from diffkit.errors import DiffkitError, RecipeError


def faults(base: str, *sets: str) -> list[DiffkitError]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(base, sets)
    return list(caught.value.errors)


def fault(base: str, code: str, path: str, *sets: str) -> DiffkitError:
    (found,) = faults(base, *sets)
    assert found.where is not None
    assert found.code == code
    assert found.where.path.removesuffix(".name") == path
    return found


def valid(base: str, *sets: str) -> Recipe:
    return load_recipe(base, sets)


@pytest.mark.parametrize("schedule", ["zero", "straight"])
def test_eps_where_the_schedule_reaches_alpha_0(base: str, schedule: str) -> None:
    """pains 4."""
    found = fault(base, "DK110", "parameterization", f"schedule={schedule}")
    assert "alpha = 0" in found.message
    assert found.fix is not None
    assert "x0" in found.fix
    assert valid(base, f"schedule={schedule}", "parameterization=velocity")
    assert valid(base, f"schedule={schedule}", "parameterization=two-heads")


def test_eps_is_allowed_where_sampling_starts_before(base: str) -> None:
    assert valid(base, "schedule=zero", "sample.start=9", "sample.allow_mismatch=true")


def test_learned_variance_needs_a_second_head(base: str) -> None:
    """pains 9."""
    found = fault(base, "DK111", "sample.sampler.variance", "sample.sampler={name: ancestral, variance: learned}")
    assert "learned-range" in (found.fix or "")
    assert fault(base, "DK111", "sample.sampler", "sample.sampler=learned")
    assert valid(base, "sample.sampler=learned", "parameterization=two-heads")
    assert fault(base, "DK111", "evaluate.sampler", "evaluate={metrics: mmd, sampler: learned}")


def test_a_head_that_nothing_trains_is_a_warning(base: str) -> None:
    """pains 12: the mean learns as without it, so it is a warning."""
    (warning,) = valid(base, "parameterization=two-heads").warnings
    assert warning.code == "DK119"
    assert "hybrid" in (warning.fix or "")
    assert not valid(base, "parameterization=two-heads", "objective={name: vlb, variance: learned}").warnings
    assert not valid(base, "parameterization=two-heads", "train.steps=0").warnings


def test_components_that_need_a_discrete_schedule(base: str) -> None:
    straight = ("schedule=straight", "parameterization=velocity")
    assert fault(base, "DK112", "sample.sampler", *straight, "sample.sampler=stepwise")
    assert fault(base, "DK112", "sample.grid", *straight, "sample.grid=leading")
    relative = ("schedule=straight", "parameterization=relative", "sample.start=0.99")
    assert fault(base, "DK112", "parameterization", *relative)
    assert valid(base, "sample.sampler=stepwise", "sample.grid=leading", "parameterization=relative")


def test_a_grid_that_starts_cleaner_than_training_ended(base: str) -> None:
    """pains 3: the deficit is reported as the bias that it causes, and refused if it is large."""
    found = fault(base, "DK113", "sample.grid", "sample.grid=late", "sample.steps=5")
    assert "sqrt(alpha_bar) is 0.546" in found.message
    assert "allow_mismatch" in (found.fix or "")
    recipe = valid(base, "sample.grid=late", "sample.steps=5", "sample.allow_mismatch=true")
    assert [warning.code for warning in recipe.warnings] == ["DK113"]
    mild = valid(base, "sample.grid={name: late, share: 0.9}", "sample.steps=5")
    assert [warning.code for warning in mild.warnings] == ["DK113"]
    assert valid(base).warnings == ()


def test_the_grid_of_the_evaluation_is_checked_too(base: str) -> None:
    assert fault(base, "DK113", "evaluate.grid", "evaluate={metrics: mmd, grid: late, steps: 5}")
    assert fault(base, "DK114", "evaluate.steps", "evaluate={metrics: mmd, steps: 11}")


def test_steps_beyond_the_schedule(base: str) -> None:
    found = fault(base, "DK114", "sample.steps", "sample.steps=11")
    assert found.choices == "1 to 10"
    assert valid(base, "sample.steps=10")
    assert fault(base, "DK114", "sample.steps", "sample.steps=10", "sample.start=9")


def test_what_cannot_start_at_alpha_0_names_sample_start(base: str) -> None:
    straight = ("schedule=straight", "parameterization=velocity")
    for sets, path in (
        ("sample.sampler=shy", "sample.sampler"),
        ("sample.grid={name: halves, share: 1}", "sample.grid"),
    ):
        found = fault(base, "DK116", path, *straight, sets)
        assert "sample.start: 0.999" in (found.fix or "")
        assert valid(base, *straight, sets, "sample.start=0.999")
        assert valid(base, sets)


@pytest.mark.parametrize("start", ["11", "2.5", "0.5"])
def test_a_start_outside_of_the_schedule(base: str, start: str) -> None:
    assert fault(base, "DK116", "sample.start", f"sample.start={start}")


def test_labels_and_classes(base: str) -> None:
    assert fault(base, "DK115", "data.condition_dropout", "data={name: points, condition_dropout: 0.1}")
    assert fault(base, "DK115", "sample.labels", "sample.labels=[0]")
    labelled = "data={name: labelled, condition_dropout: 0.1}"
    assert valid(base, labelled, "sample.labels=[0, 2]")
    assert fault(base, "DK115", "sample.labels", labelled, "sample.labels=[0, 3]").choices == "0 to 2"


def test_guidance_needs_the_null_class_trained(base: str) -> None:
    assert fault(base, "DK115", "sample.guidance.0", "data=labelled", "sample.guidance=[null-guided]")
    assert valid(base, "data={name: labelled, condition_dropout: 0.1}", "sample.guidance=[null-guided]")
    assert valid(base, "data=labelled", "sample.guidance=[null-guided]", "train.steps=0")


def test_guidance_that_needs_classes_says_so_itself(base: str) -> None:
    assert fault(base, "DK107", "sample.guidance.0", "sample.guidance=[cfg]")


@pytest.mark.parametrize(
    ("code", "path", "sets"),
    [
        ("DK118", "train.lr_schedule.warmup", ["train.lr_schedule={name: linear, warmup: 101}"]),
        ("DK118", "train.accumulate", ["train.accumulate=3"]),
        ("DK118", "train.ema", ["train.ema={decay: 0.9, power: 3}"]),
        ("DK118", "train.ema", ["train.ema={name: a}"]),
        ("DK117", "train.ema", ["train.ema={power: 3, warmup: true}"]),
        ("DK118", "train.ema.1", ["train.ema=[{name: a, decay: 0.9}, {name: a, decay: 0.99}]"]),
        ("DK118", "train.ema", ["train.ema={name: raw, decay: 0.9}"]),
        ("DK118", "train.precision", ["parameterization=relative", "train.precision=bf16"]),
        ("DK117", "train.channels_last", ["train.channels_last=true"]),
        ("DK117", "evaluate.count", ["evaluate={count: 8}"]),
        ("DK117", "evaluate.steps", ["evaluate={steps: 8}"]),
    ],
)
def test_dead_and_contradictory_fields(base: str, code: str, path: str, sets: list[str]) -> None:
    """pains 25: an option that does nothing is an error."""
    assert fault(base, code, path, *sets).fix


@pytest.mark.parametrize(
    ("key", "value", "now"),
    [("warmup", 5, '"train.lr_schedule.warmup"'), ("schedule", "cosine", '"lr_schedule"')],
)
def test_earlier_keys_name_the_present_ones(base: str, key: str, value: object, now: str) -> None:
    assert now in (fault(base, "DK104", f"train.{key}", f"train.{key}={value}").hint or "")


def test_a_constant_learning_rate_has_no_end(base: str) -> None:
    assert fault(base, "DK104", "train.lr_schedule.end", "train.lr_schedule={name: constant, end: 0.1}")


@pytest.mark.parametrize(
    "sets",
    [
        ["train.lr_schedule={warmup: 100}"],
        ["train.lr_schedule={name: cosine, end: 0.1}"],
        ["train.accumulate=4"],
        ["train.ema={half_life: 1000, warmup: true}"],
        ["train.precision=bf16"],
        ["data=labelled", "train.channels_last=true"],
        ["train={steps: 0, lr_schedule: {warmup: 5}}"],
    ],
)
def test_fields_that_are_read(base: str, sets: list[str]) -> None:
    assert valid(base, *sets)


def test_checks_are_told_beside_other_faults(base: str) -> None:
    assert [f.code for f in faults(base, "sample.steps=11", "train.lr_schedule.warmup=200", "seed=-1")] == [
        "DK106",
        "DK114",
        "DK118",
    ]


def test_an_average_without_warm_up_in_a_short_training_is_a_warning(base: str) -> None:
    """Fault A5: decay 0.9999 keeps 99 % of the initial weights after 100 steps. The default has a warm-up."""
    for sets in ((), ("train.ema={decay: 0.9999, warmup: true}",), ("train.ema=0.95",), ("train.ema={power: 3}",)):
        assert valid(base, *sets).warnings == ()
    (warning,) = valid(base, "train.ema=0.951").warnings
    assert warning.code == "DK121"
    assert "5 / (1 - decay) is 102 steps, and the training has 100" in warning.message


def test_a_schedule_that_ends_far_from_noise_is_a_warning(base: str) -> None:
    """pains 11: betas made for 1000 steps are not rescaled, so 100 of them leave 60 % of the data."""
    few = load_recipe("digits", ["schedule.steps=100", "sample.steps=50"])
    assert [warning.code for warning in few.warnings] == ["DK120"]
    assert "0.6" in few.warnings[0].message
    assert not load_recipe(
        "digits", ["schedule={name: linear, steps: 100, beta_start: 1.0e-3, beta_end: 0.2}"]
    ).warnings
    assert not load_recipe("digits").warnings


def test_an_augmentation_that_does_not_state_whether_it_moves_pixels(tmp_path: Path) -> None:
    """A picture among the conditions would stay where it is, or change its colours."""
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("L", (4, 4), i).save(tmp_path / name / f"{i}.png")
    text = f"""
name: pairs
data: {{name: images, path: {tmp_path / "x"}, color: grey, pictures: {{mask: y}}, augment: [flip, shift]}}
conditions: {{mask: concat}}
schedule: {{name: linear, steps: 10, beta_start: 0.1, beta_end: 0.6}}
parameterization: eps
network: {{name: unet, channels: 8, multipliers: [1], blocks: 1, attention: []}}
train: {{steps: 100, batch_size: 4}}
sample: {{sampler: ancestral, count: 4}}
"""
    found = fault(text, "DK115", "data.augment.1")
    assert "augmentation shift does not state whether it moves pixels, but the condition mask" in found.message
    assert valid(text, "conditions={}")
    assert valid(text, "data.augment=[flip]")
