"""Levels of floats, of tensors and of one of each give the same numbers; limits are those of IEEE arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffkit import Level, LevelError, Model, build, sample, scalar

QUANTITIES = ("snr", "half_logsnr", "ratio", "angle", "scale")


@pytest.mark.parametrize("name", QUANTITIES)
def test_one_number_may_be_a_float_and_the_other_a_tensor(name: str) -> None:
    want = torch.full((3,), getattr(Level(0.6, 0.3), name), dtype=torch.float64)
    alpha, sigma = torch.full((3,), 0.6, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)
    for level in (Level(alpha, sigma), Level(0.6, sigma), Level(alpha, 0.3)):
        torch.testing.assert_close(torch.as_tensor(getattr(level, name)), want)


@pytest.mark.parametrize("tensor", ["alpha", "sigma"])
def test_a_mixed_level_multiplies_examples_row_by_row(tensor: str) -> None:
    x0, eps, rows = torch.ones(2, 1, 3), torch.full((2, 1, 3), 10.0), torch.tensor([0.5, 0.25])
    level = Level(rows, 0.1) if tensor == "alpha" else Level(0.1, rows)
    found = level.add_noise(x0, eps)
    want = [1.5, 1.25] if tensor == "alpha" else [5.1, 2.6]
    torch.testing.assert_close(found[:, 0, 0], torch.tensor(want))
    assert found.shape == x0.shape


@pytest.mark.parametrize(("x", "y", "want"), [(1.0, 0.0, math.inf), (-2.0, 0.0, -math.inf), (1.0, -0.0, -math.inf)])
def test_division_by_zero_is_infinite(x: float, y: float, want: float) -> None:
    assert scalar.divide(x, y) == want == float(scalar.divide(torch.tensor(x), y))


def test_zero_by_zero_is_not_a_number() -> None:
    assert math.isnan(float(scalar.divide(0.0, 0.0)))
    assert math.isnan(float(scalar.divide(math.nan, 0.0)))


def test_limits_of_functions_are_those_of_tensors() -> None:
    for function, values in {
        scalar.log: (0.0, 2.0),
        scalar.log1p: (-1.0, 0.5),
        scalar.exp: (1000.0, -1.0),
        scalar.expm1: (1000.0, -math.inf),
        scalar.sqrt: (0.0, 2.0),
    }.items():
        for value in values:
            assert function(value) == pytest.approx(float(function(torch.tensor(value, dtype=torch.float64))))
    assert math.isnan(float(scalar.sqrt(-1.0)))


class Zero(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("ratio", [1e-4, 1e4])
def test_a_level_outside_of_the_training_is_refused_with_both_ends(ratio: float) -> None:
    schedule = build("schedule", "ve", sigma_min=0.01, sigma_max=50.0)
    model = Model(Zero(), build("parameterization", "x0"), schedule)
    for inside in (0.01, 50.0):
        model(torch.ones(1, 2), Level(1.0, inside))
    with pytest.raises(LevelError, match=rf"sigma/alpha = {ratio:g} .*\[0.01, 50\]") as caught:
        model(torch.ones(1, 2), Level(1.0, ratio))
    assert caught.value.code == "DK506"


def test_levels_of_a_table_in_float32_are_taken() -> None:
    """Tables of other libraries are products in float32, with errors of 1e-6 and more at the noisy end."""
    schedule = build("schedule", "scaled-linear", beta_start=0.00085, beta_end=0.012)
    model = Model(Zero(), build("parameterization", "x0"), schedule)
    kept = float((1.0 - schedule.betas.float()).cumprod(0)[-1])
    model(torch.ones(1, 2), Level(1.0, math.sqrt((1.0 - kept) / kept)))
    ratio = float(schedule.noise.ratio)
    model(torch.ones(1, 2), Level(1.0, ratio * (1.0 + 1e-6)))
    with pytest.raises(LevelError, match=rf"sigma/alpha = {1.001 * ratio:.9g} "):
        model(torch.ones(1, 2), Level(1.0, 1.001 * ratio))


def test_the_time_of_the_network_can_be_rounded_alone() -> None:
    """The network receives a whole index, while x is decoded at the exact level."""
    told: list[float] = []

    class Telling(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            told.append(float(c_noise[0]))
            return torch.ones_like(x)

    schedule = build("schedule", "linear")
    level, x = schedule.level(500.7), torch.ones(1, 2)
    exact, rounded = (
        Model(Telling(), build("parameterization", "eps"), schedule, one)(x, level) for one in (False, True)
    )
    assert told == pytest.approx([499.7, 500.0], abs=1e-3)
    torch.testing.assert_close(exact.x0, rounded.x0)


@pytest.mark.parametrize("next_one", [Level(0.6, 0.8), Level(0.3, 0.9)])
def test_levels_must_become_cleaner(next_one: Level) -> None:
    levels = [Level(0.1, 0.9), Level(0.6, 0.8), next_one, Level(1.0, 0.0)]
    model = Model(Zero(), build("parameterization", "x0"), build("schedule", "linear"))
    with pytest.raises(ValueError, match="from level 1 to level 2"):
        sample(model, build("sampler", "ddim"), levels, torch.ones(1, 2))


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_networks_get_0_to_1000_on_continuous_schedules(name: str) -> None:
    schedule = build("schedule", name)
    assert schedule.index(schedule.t_clean) == 0.0
    assert schedule.index(schedule.t_noise) == 1000.0
    assert schedule.index((schedule.t_clean + schedule.t_noise) / 2) == pytest.approx(500.0)
