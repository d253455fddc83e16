"""The ancestral sampler has the exact law of identities D5, on every grid, for every number of steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from diffkit import transition
from diffkit.basics.grid import Leading, Linspace, Quadratic, Trailing
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear
from diffkit.grid import Grid
from diffkit.testing import Affine, GaussianOracle, first_order, probe

GRIDS = {"linspace": Linspace(), "trailing": Trailing(), "leading": Leading(), "quadratic": Quadratic()}
SCHEDULE = Linear()
ORACLE = GaussianOracle(torch.tensor([0.4], dtype=torch.float64), 0.25)
COUNTS = (*range(1, 33), 61, 103, 600, 1000)


def error(grid: Grid, n: int, variance: str = "small") -> float:
    """The largest difference of A, b, Q of the run and of the theory."""
    levels = grid.levels(SCHEDULE, n)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    want = Affine(one, zero[0], zero)
    for t, s in pairwise(levels):
        small = float(transition.posterior(t, s))
        std = 0.0 if s.is_clean else small if variance == "small" else float(transition.spread(t, s))
        want = want.then(first_order(ORACLE, t, s, small, std))
    got = probe(ORACLE, Ancestral(variance), levels, 1)  # type: ignore[arg-type]
    return max(float((a - b).abs().max()) for a, b in zip((got.A, got.b, got.Q), (want.A, want.b, want.Q), strict=True))


@pytest.mark.parametrize("name", GRIDS)
def test_law(name: str) -> None:
    """pains 1, 2, 3 and 3b at once."""
    assert max(error(GRIDS[name], n) for n in COUNTS) < 1e-10


@given(st.integers(1, 200), st.sampled_from(sorted(GRIDS)), st.sampled_from(["small", "large"]))
def test_law_of_any_count(n: int, name: str, variance: str) -> None:
    assert error(GRIDS[name], n, variance) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_law_of_every_count(name: str) -> None:
    for n in range(1, 1001):
        assert error(GRIDS[name], n) < 1e-10, n


@pytest.mark.parametrize(("variance", "s"), [("large", 1.0), ("small", 1.0), ("large", 0.0025), ("small", 0.0025)])
def test_bracketing_variances(variance: str, s: float) -> None:
    """pains 3b: `large` is exact for unit variance, `small` far below at ten steps, and the other way round."""
    oracle = GaussianOracle(torch.zeros(1, dtype=torch.float64), s)
    levels = Linspace().levels(SCHEDULE, 10)
    one = levels[-2]
    run = probe(oracle, Ancestral(variance), levels[:-1], 1)  # type: ignore[arg-type]
    first = levels[0].alpha ** 2 * s + levels[0].sigma ** 2
    variance_now = float(run.A**2 * first + run.Q)
    exact = one.alpha**2 * s + one.sigma**2
    if (variance, s) == ("large", 1.0):
        assert variance_now == pytest.approx(exact, abs=1e-12)
    else:
        assert (variance_now < exact) == (variance == "small")
