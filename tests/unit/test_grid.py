"""Grids on every number of steps: pains 1 to 3."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from diffkit.basics.grid import Leading, Linspace, Quadratic, Trailing
from diffkit.ddpm.schedule import Linear
from diffkit.errors import UsageError
from diffkit.grid import Grid, push_apart, round_half_up
from diffkit.testing import fixtures

GRIDS = [Linspace(), Trailing(), Leading(), Quadratic(), Quadratic(0.8)]
SCHEDULE = Linear()


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_every_step_count(grid: Grid) -> None:
    """pains 1, 2, 3: n + 1 levels of distinct whole times, clean at the end, from pure noise unless said otherwise."""
    for n in range(1, 1001):
        times = grid.times(SCHEDULE, n)
        assert len(times) == n
        assert all(a > b for a, b in pairwise(times))
        assert times[-1] >= 1
        assert times[0] == 1000 or (grid.declares_deficit and times[0] < 1000) or n == 1000
        assert all(t == int(t) for t in times)


@pytest.mark.parametrize("n", [1, 2, 61, 103, 599, 600, 1000])
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_levels_are_those_of_the_times(grid: Grid, n: int) -> None:
    levels = grid.levels(SCHEDULE, n)
    assert levels == [*(SCHEDULE.level(t) for t in grid.times(SCHEDULE, n)), SCHEDULE.clean]


@pytest.mark.parametrize("grid", [Linspace(), Trailing()], ids=repr)
@pytest.mark.parametrize("n", [61, 103, 121, 122, 201, 501])
def test_step_counts_that_break_other_libraries(grid: Grid, n: int) -> None:
    """pains 2: an arange by a rounded stride gives n + 1 times that end in -1; pains 3: others start at t = n."""
    assert grid.times(SCHEDULE, n)[0] == 1000
    assert len(grid.levels(SCHEDULE, n)) == n + 1


@given(st.integers(1, 300).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T), st.sampled_from(GRIDS))))
def test_any_schedule_length(case: tuple[int, int, Grid]) -> None:
    T, n, grid = case
    times = grid.times(fixtures.discrete(T), n)
    assert len(set(times)) == n
    assert sorted(times, reverse=True) == times
    assert times[-1] >= 1
    assert times[0] <= T


@given(st.lists(st.integers(-5, 40), min_size=1, max_size=20), st.integers(20, 35))
def test_push_apart(times: list[int], steps: int) -> None:
    """Strictly falling times in [1, T]; distinct ones within are left alone."""
    out = push_apart(sorted(times, reverse=True), steps)
    assert all(a > b for a, b in pairwise(out))
    assert out[-1] >= 1
    assert out[0] <= steps
    falling = sorted(set(times), reverse=True)
    if falling[0] <= steps and falling[-1] >= 1:
        assert push_apart(falling, steps) == falling


@pytest.mark.parametrize(("t", "whole"), [(0.4, 0), (0.5, 1), (1.5, 2), (2.5, 3), (499.5, 500)])
def test_halves_go_up(t: float, whole: int) -> None:
    assert round_half_up(t) == whole


def test_refusals() -> None:
    for schedule, n, code in ((SCHEDULE, 0, "DK020"), (SCHEDULE, 1001, "DK022"), (fixtures.TRIG, 0, "DK020")):
        with pytest.raises(UsageError) as caught:
            Trailing().levels(schedule, n)
        assert caught.value.code == code
        assert caught.value.fix
    with pytest.raises(UsageError) as caught:
        Leading().levels(fixtures.TRIG, 5)
    assert caught.value.code == "DK021"


def test_continuous_grids() -> None:
    """From t_noise, never asked at a level without noise, clean at the end."""
    for grid in (Linspace(), Trailing(), Quadratic()):
        for n in (1, 2, 5, 50):
            for schedule in (fixtures.TRIG, fixtures.RECTIFIED, fixtures.EXPLODING):
                levels = grid.levels(schedule, n)
                assert len(levels) == n + 1
                assert levels[0] == schedule.noise
                assert levels[-1] == schedule.clean
                assert all(level.sigma > 0 for level in levels[:-1])
    assert Linspace().times(fixtures.TRIG, 4) == [1.0, 0.75, 0.5, 0.25]
    assert Linspace().times(fixtures.EXPLODING, 2) == [80.0, 0.002]


def test_exact_points() -> None:
    assert Leading().times(SCHEDULE, 10) == [901.0, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert Trailing().times(SCHEDULE, 4) == [1000.0, 750, 500, 250]
    assert Linspace().times(SCHEDULE, 3) == [1000.0, 501, 1]
    assert Quadratic().times(SCHEDULE, 3) == [1000.0, 251, 1]
    assert Quadratic(0.8).times(SCHEDULE, 2) == [800.0, 1]
