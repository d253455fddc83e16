"""A schedule that is learned with the weights: training, checkpoints, sampling, and recipes that cannot train it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffkit_vdm.network import Fourier
from diffkit_vdm.schedule import LearnedVP

import diffkit
from diffkit import Shape
from diffkit.errors import RecipeError
from diffkit.runs.training import make_trainer
from diffkit.train.trainer import Trainer

RECIPE = {
    "name": "ring",
    "data": "mixture",
    "schedule": {"name": "learned-vp", "gamma_min": -9.0, "parts": 4},
    "parameterization": "eps",
    "network": {"name": "fourier", "lowest": 0, "inner": {"name": "mlp", "width": 16}},
    "objective": {"name": "continuous-vlb", "times": "stratified"},
    "train": {"steps": 16, "batch_size": 32, "ema": 0.9, "optimizer": {"name": "adam", "lr": 0.01}},
    "sample": {"sampler": "ancestral", "steps": 5, "count": 4},
}


def trainer() -> Trainer:
    return make_trainer(diffkit.assemble(diffkit.load_recipe(RECIPE)), torch.device("cpu"))


def schedule_of(made: Trainer) -> LearnedVP:
    found = made.engine.model.schedule
    assert isinstance(found, LearnedVP)
    return found


def test_ends_and_shares_are_trained_and_resume_bit_for_bit() -> None:
    """The state of the optimizer for the schedule is part of the checkpoint."""
    whole, first, second = trainer(), trainer(), trainer()
    start = {name: value.clone() for name, value in whole.tensors()["components"].items()}
    assert len(start) == 2
    whole.run()
    for name, value in whole.tensors()["components"].items():
        assert not torch.equal(value, start[name]), f"{name} is not trained"
    first.run(stop=lambda: first.step >= 6)
    assert first.step == 6
    second.load(first.tensors(), first.state())
    second.run()
    for group, tensors in whole.tensors().items():
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors()[group][name]), f"{group}/{name}"


def test_every_condition_reaches_the_network_with_features() -> None:
    shape = Shape(1, 1, (8, 8), conditions={"size": (2,)}, extra_channels=1)
    options = {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": ()}
    network = Fourier(diffkit.build("network", "unet", shape=Fourier.inner_shape(shape), **options), 0)
    assert diffkit.conditions_of(network) == diffkit.conditions_of(network.inner)
    x, c_noise = torch.randn(3, 1, 8, 8), torch.rand(3)
    more = {"size": torch.randn(3, 2), "concat": torch.randn(3, 1, 8, 8)}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
        whole = network(x, c_noise, **more)
        for name in more:
            left = {key: value for key, value in more.items() if key != name}
            assert not torch.equal(network(x, c_noise, **left), whole)


def test_the_network_keeps_the_meaning_of_a_level_while_the_schedule_changes() -> None:
    """The average of the weights is used with the levels of the trained schedule."""
    made = trainer()
    before = schedule_of(made).level(0.4)
    index = schedule_of(made).index(0.4)
    made.run()
    after = schedule_of(made)
    assert after.time(before) != pytest.approx(0.4, abs=1e-3)
    assert after.index(after.time(before)) == pytest.approx(index, rel=1e-6)


def test_samples_start_at_the_learned_end(tmp_path: Path) -> None:
    made = diffkit.run(diffkit.load_recipe(RECIPE, ["evaluate.metrics=[]"]), out=tmp_path / "ring", device="cpu")
    opened = diffkit.open_run(made.directory.path, device="cpu")
    trained = opened.trained()
    assert trained.levels()[0] == trained.schedule.noise != opened.assembly.schedule.noise
    assert torch.equal(opened.sample(3), made.sample(3))
    assert bool(torch.isfinite(opened.sample(3)).all())


def test_an_objective_that_is_no_bound_is_refused() -> None:
    """The simple loss would be least at pure noise."""
    with pytest.raises(RecipeError) as caught:
        diffkit.load_recipe(RECIPE, ["objective=simple"])
    (found,) = caught.value.errors
    assert found.code == "DK122"
    assert diffkit.load_recipe(RECIPE, ["objective=simple", "train.steps=0"])
