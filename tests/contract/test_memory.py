"""Sampling and bounds hold as many tensors at the end of a long grid as at the end of a short one."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from diffkit import Estimate, Level, Model, Network, StepInfo, build, sample
from diffkit.host import registry
from diffkit.likelihood import Chain, Density, variational_bound

OTHERS = {"diffusers"}
"""Wraps another library, whose schedulers keep tables of their own."""
OPTIONS = {"blend": {"inner": "ddim"}, "repaint": {"inner": "ddim"}}
SAMPLERS = sorted({entry.name for entry in registry().entries("sampler")} - OTHERS)


class Free(Network):
    """A tenth of its input, with a head for the variance if `channels` is 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return 0.1 * x.repeat(1, self.channels)


@pytest.mark.parametrize("name", SAMPLERS)
def test_memory_is_constant_in_the_number_of_steps(name: str) -> None:
    sampler = build("sampler", name, **OPTIONS.get(name, {}))
    model = Model(Free(1), build("parameterization", "eps"), build("schedule", "linear"))

    def held(n: int) -> int:
        """Tensors of the size of x that are alive after the last step but one."""
        found = 0

        def count(step: StepInfo) -> None:
            nonlocal found
            if step.index == step.count - 1:
                gc.collect()
                found = sum(type(one) is Tensor and one.shape == (3, 5) for one in gc.get_objects())

        levels = build("grid", "trailing").levels(model.schedule, n)
        sample(model, sampler, levels, torch.randn(3, 5), on_step=count)
        return found

    assert 0 < held(60) <= held(6)


def test_memory_of_a_bound_is_constant_in_its_layers() -> None:
    schedule = build("schedule", "linear")
    model = Model(Free(1), build("parameterization", "eps"), schedule)

    def held(n: int) -> int:
        """Tensors of the size of x that are alive at the last evaluation."""
        found = calls = 0

        def counted(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            nonlocal found, calls
            calls += 1
            if calls == n:
                gc.collect()
                found = sum(type(one) is Tensor and one.shape == (3, 5) for one in gc.get_objects())
            return model(x, level)

        chain = Chain(tuple(build("grid", "trailing").levels(schedule, n)), "small")
        variational_bound(counted, chain, torch.zeros(3, 5), torch.randn_like, Density())
        return found

    assert 0 < held(200) <= held(6)
