"""The grid of equal steps in log-SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
from diffkit_dpmsolver.grid import UniformLogSNR
from hypothesis import given, settings, strategies as st

from diffkit import Level, LevelError, Scalar, Schedule, scalar
from diffkit.ddpm.schedule import Linear


@dataclass(frozen=True)
class Exploding(Schedule):
    """alpha = 1, sigma = t."""

    t_clean: float = 0.002
    t_noise: float = 80.0

    def level(self, t: Scalar) -> Level:
        return Level(1.0, t)

    def time(self, level: Level) -> Scalar:
        return scalar.divide(level.sigma, level.alpha)


@dataclass(frozen=True)
class Straight(Schedule):
    """alpha = 1 - t, sigma = t."""

    def level(self, t: Scalar) -> Level:
        return Level(1.0 - t, t)

    def time(self, level: Level) -> Scalar:
        return level.sigma / (level.alpha + level.sigma)


@pytest.mark.parametrize("n", [1, 2, 5, 18])
def test_steps_are_equal_on_a_continuous_schedule(n: int) -> None:
    levels = UniformLogSNR().levels(Exploding(), n)
    clocks = [float(level.half_logsnr) for level in levels[:-1]]
    assert len(levels) == n + 1
    assert levels[-1].is_clean
    assert clocks[0] == pytest.approx(-math.log(80.0))
    if n > 1:
        assert clocks[-1] == pytest.approx(-math.log(0.002))
        steps = [b - a for a, b in pairwise(clocks)]
        assert steps == pytest.approx([steps[0]] * (n - 1))


@settings(deadline=None)
@given(n=st.integers(1, 1000))
def test_every_number_of_steps_on_a_discrete_schedule(n: int) -> None:
    """Pains 2: n + 1 levels, the SNR rising strictly, from T to clean."""
    times = UniformLogSNR().times(Linear(), n)
    assert len(times) == n
    assert times[0] == 1000.0
    assert all(a > b for a, b in pairwise(times))
    assert n == 1 or times[-1] == 1.0


def test_a_schedule_of_pure_noise_needs_a_start() -> None:
    """Pains 4: half_logsnr is -inf at alpha = 0, and the message gives a fix."""
    assert not UniformLogSNR().reaches_noise
    with pytest.raises(LevelError, match=r"start: -4\.0"):
        UniformLogSNR().levels(Straight(), 5)
    grid = UniformLogSNR(start=-4.0)
    assert grid.reaches_noise
    assert grid.declares_deficit
    levels = grid.levels(Straight(), 5)
    assert float(levels[0].half_logsnr) == pytest.approx(-4.0)
    assert float(levels[4].half_logsnr) == pytest.approx(-math.log(0.002))


def test_ends_can_be_chosen_and_must_lie_on_the_schedule() -> None:
    levels = UniformLogSNR(start=-2.0, end=3.0).levels(Exploding(), 6)
    assert [float(v.half_logsnr) for v in levels[:-1]] == pytest.approx([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    for grid in (UniformLogSNR(start=2.0, end=1.0), UniformLogSNR(start=-9.0), UniformLogSNR(end=9.0)):
        with pytest.raises(LevelError, match="within the schedule"):
            grid.levels(Exploding(), 6)


def test_a_schedule_of_one_step() -> None:
    assert UniformLogSNR().times(Linear(1), 1) == [1.0]
