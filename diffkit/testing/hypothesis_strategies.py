"""Strategies for hypothesis: levels, schedules, grids, and Gaussian data with their exact denoisers.

Requires hypothesis, which diffkit does not install: `pip install hypothesis`.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from diffkit.level import Level
from diffkit.schedule import Discrete, Schedule

from ..oracles.gaussian import GaussianOracle
from ..oracles.mixture import MixtureOracle
from . import fixtures


def levels(*, clean: bool = False, noise: bool = False) -> st.SearchStrategy[Level]:
    """Return levels of any scale with half_logsnr in [-8, 8].

    Args:
        clean: whether to include levels with sigma = 0.
        noise: whether to include levels with alpha = 0.
    """
    clocks, scales = st.floats(-8.0, 8.0), st.floats(0.1, 50.0)
    inner = st.builds(_level, clocks, scales)
    ends = [st.builds(lambda c: Level(c, 0.0), scales)] * clean + [st.builds(lambda c: Level(0.0, c), scales)] * noise
    return st.one_of(inner, *ends)


def _level(half_logsnr: float, scale: float) -> Level:
    angle = math.atan(math.exp(-half_logsnr))
    return Level(scale * math.cos(angle), scale * math.sin(angle))


def discrete_schedules(max_steps: int = 50) -> st.SearchStrategy[Discrete]:
    """Return schedules of 1 to `max_steps` steps with betas in (0, 1)."""
    betas = st.floats(1e-4, 0.9, allow_subnormal=False)
    return st.lists(betas, min_size=1, max_size=max_steps).map(Discrete)


def schedules(max_steps: int = 50) -> st.SearchStrategy[Schedule]:
    """Return discrete schedules, and continuous ones of every family and of an arbitrary scale."""
    curves = st.sampled_from([fixtures.TRIG, fixtures.RECTIFIED, fixtures.EXPLODING, fixtures.WAVY])
    return st.one_of(curves, discrete_schedules(max_steps))


def grids(max_steps: int = 12, *, clean: bool = True) -> st.SearchStrategy[list[Level]]:
    """Return lists of levels, noisiest first, with a strictly rising signal-to-noise ratio and arbitrary scales.

    Args:
        max_steps: the largest number of steps; a list has 2 to max_steps + 1 levels.
        clean: whether the last level is clean data.
    """
    return st.integers(1, max_steps).flatmap(
        lambda n: st.builds(
            lambda gaps, scales: _grid(gaps, scales, clean),
            st.lists(st.floats(0.05, 2.0), min_size=n, max_size=n),
            st.lists(st.floats(0.2, 5.0), min_size=n + 1, max_size=n + 1),
        )
    )


def _grid(gaps: list[float], scales: list[float], clean: bool) -> list[Level]:
    clock, found = -4.0, [_level(-4.0, scales[0])]
    for gap, scale in zip(gaps, scales[1:], strict=True):
        clock += gap
        found.append(_level(clock, scale))
    if clean:
        found[-1] = Level(scales[-1], 0.0)
    return found


def gaussians(max_dimensions: int = 4) -> st.SearchStrategy[GaussianOracle]:
    """Return exact denoisers of Gaussian data with any mean and covariance."""
    return st.builds(_gaussian, st.integers(1, max_dimensions), st.integers(0, 2**20))


def _gaussian(dimensions: int, seed: int) -> GaussianOracle:
    source = torch.Generator().manual_seed(seed)
    mean = torch.randn(dimensions, generator=source, dtype=torch.float64)
    root = torch.randn(dimensions, dimensions, generator=source, dtype=torch.float64)
    return GaussianOracle(mean, root @ root.T)


def mixtures_1d(max_components: int = 4) -> st.SearchStrategy[MixtureOracle]:
    """Return exact denoisers of mixtures in one dimension, which also have an exact flow."""
    part = st.tuples(st.floats(0.1, 1.0), st.floats(-2.0, 2.0), st.floats(0.02, 1.0))
    return st.lists(part, min_size=1, max_size=max_components).map(lambda parts: MixtureOracle(*zip(*parts)))


def seeds() -> st.SearchStrategy[int]:
    """Return seeds of generators."""
    return st.integers(0, 2**31)
