"""What a dry run measures: parameters, arithmetic, memory and speed of a training."""

from __future__ import annotations

from types import ModuleType

import pytest

from diffkit.runs.dry_run import cost_of_run


def test_an_estimate_before_the_run(toys: ModuleType) -> None:
    made = toys.trainer(toys.task(), accumulate=1)
    found = cost_of_run(made, steps=2)
    sizes = [5 * 16 + 16, 16 * 4 + 4, 4 * 16]
    assert found.parameters == sum(sizes)
    assert found.seconds(100, 10) == pytest.approx(1000 / found.images_per_second)
    forward = 2 * (5 * 16 + 16 * 4)  # multiplications and additions of an example
    # Backward costs the weights' gradient in both layers and the input's in the second.
    assert found.flops == forward + forward + 2 * 16 * 4
    copies = 1 + 2 + 3 + 1  # weights, moments, averages, gradients
    assert found.state >= sum(sizes) * 4 * copies
    assert 0 < found.activations < 20_000
    assert found.memory == found.state + found.activations
    tensors = made.tensors().values()
    assert found.checkpoint == sum(t.numel() * t.element_size() for named in tensors for t in named.values())


def test_activations_are_those_of_one_part(toys: ModuleType) -> None:
    one = cost_of_run(toys.trainer(toys.task(), accumulate=1), steps=1)
    two = cost_of_run(toys.trainer(toys.task(), accumulate=2), steps=1)
    assert two.activations < 0.7 * one.activations


def test_an_estimate_takes_no_longer_than_its_budget(toys: ModuleType) -> None:
    """What is measured on one image stands for a batch that would take hours here."""
    made = toys.trainer(toys.task(), batch_size=100_000, accumulate=1)
    asked: list[int] = []
    made.engine.network.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    found = cost_of_run(made, steps=2, budget=1e-6)
    assert set(asked) == {1}
    assert found.activations > 1e6
    whole = cost_of_run(toys.trainer(toys.task(), batch_size=1000, accumulate=1), steps=2)
    assert whole.images_per_second > 3 * found.images_per_second
