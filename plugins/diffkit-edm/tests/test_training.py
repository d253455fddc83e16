"""Schedule, preconditioning, weighting, times and grid, against the tables of the paper."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffkit_edm import grid, parameterization, schedule, times, weighting
from hypothesis import given, settings, strategies as st

from diffkit import Level, LevelError, Model, Network, build
from diffkit.ddpm.parameterization import X0
from diffkit.ddpm.schedule import Linear
from diffkit.testing import GaussianOracle

F64 = torch.float64
Sigma = st.floats(0.002, 80.0)
Scale = st.floats(0.1, 3.0)


@settings(deadline=None)
@given(t=Sigma)
def test_time_inverts_level(t: float) -> None:
    own = schedule.EDM()
    assert own.time(own.level(t)) == t
    both = torch.tensor([t, t], dtype=F64)
    assert torch.equal(torch.as_tensor(own.time(own.level(both))), both)
    assert own.level(both).alpha.dtype == F64  # type: ignore[union-attr]


def test_the_ends_of_the_schedule() -> None:
    own = schedule.EDM(0.01, 20.0)
    assert (own.t_clean, own.t_noise) == (0.01, 20.0)
    assert own.clean == Level(1.0, 0.0)
    assert own.noise == Level(1.0, 20.0)
    with pytest.raises(ValueError, match="not below"):
        schedule.EDM(2.0, 1.0)


@settings(deadline=None)
@given(sg=Sigma, scale=Scale, sd=st.floats(0.1, 2.0), x0=st.floats(-2, 2), eps=st.floats(-3, 3))
def test_preconditioning_is_that_of_the_paper(sg: float, scale: float, sd: float, x0: float, eps: float) -> None:
    """Table 1, on any curve: y = x / alpha, x0 = c_skip y + c_out F, input c_in y, c_noise = log(sg) / 4."""
    own, level = parameterization.EDM(sd), Level(scale, scale * sg)
    x = level.add_noise(torch.tensor([x0], dtype=F64), torch.tensor([eps], dtype=F64))
    y = x / scale
    c_skip, c_out = sd**2 / (sg**2 + sd**2), sg * sd / math.sqrt(sg**2 + sd**2)
    target = own.target(torch.tensor([x0], dtype=F64), torch.tensor([eps], dtype=F64), level)
    torch.testing.assert_close(c_skip * y + c_out * target, torch.tensor([x0], dtype=F64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own.decode(target, x, level).x0, torch.tensor([x0], dtype=F64), rtol=1e-9, atol=1e-9)
    assert own.c_in(level) * scale == pytest.approx(1 / math.sqrt(sg**2 + sd**2))
    assert own.c_noise(level) == pytest.approx(math.log(sg) / 4)


def test_f_is_of_unit_variance_and_zero_for_gaussian_data() -> None:
    """Identity C6."""
    oracle = GaussianOracle(torch.zeros(1, dtype=F64), 0.25)
    for sg in (0.01, 0.5, 30.0):
        level = Level(1.0, sg)
        a, b = parameterization.EDM().coefficients(level)
        assert a**2 * 0.25 + b**2 == pytest.approx(1.0)
        known = oracle(torch.tensor([[1.7]], dtype=F64), level)
        assert (a * known.x0 + b * known.eps).abs().max() < 1e-12


def test_f_is_minus_v_where_the_deviation_is_one() -> None:
    level = Level(math.cos(0.7), math.sin(0.7))
    assert parameterization.EDM(1.0).coefficients(level) == pytest.approx((level.sigma, -level.alpha))


def test_the_row_is_finite_at_both_ends() -> None:
    """Pains 4: pure noise and clean data decode."""
    x, y = torch.tensor([[0.4]]), torch.tensor([[-1.1]])
    own = parameterization.EDM(0.5)
    torch.testing.assert_close(own.decode(y, x, Level(0.0, 1.0)).x0, 0.5 * y)
    torch.testing.assert_close(own.decode(y, x, Level(1.0, 0.0)).x0, x)


@settings(deadline=None)
@given(sg=Sigma, scale=Scale, sd=st.floats(0.1, 2.0))
def test_the_weight_is_one_on_f(sg: float, scale: float, sd: float) -> None:
    """Pains 12, identity C5: lambda c_out^2 = 1."""
    level, own = Level(scale, scale * sg), weighting.EDM(sd)
    assert own(level) == pytest.approx((sg**2 + sd**2) / (sg * sd) ** 2)
    assert own.on_output(level, parameterization.EDM(sd)) == pytest.approx(1.0)
    assert own.on_output(level, X0()) == pytest.approx(own(level))


def test_times_are_lognormal() -> None:
    uniform = (torch.arange(4096) / 4096).float()
    logs = times.LogNormal().draw(uniform, schedule.EDM(1e-9, 1e9)).log()
    assert logs.dtype == F64
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert logs.std().item() == pytest.approx(1.2, abs=0.01)
    shifted = times.LogNormal(0.4, 2.0).draw(uniform, schedule.EDM(1e-9, 1e9)).log()
    torch.testing.assert_close(shifted, (logs + 1.2) / 1.2 * 2.0 + 0.4)


def test_strata_of_lognormal_times() -> None:
    """Each quantile has the right share of numbers below; the last number is finite."""
    strata = build("times", "stratified", inner=times.LogNormal())
    logs = strata.draw(torch.full((256,), 1.0 - 2.0**-24), schedule.EDM(1e-9, 1e9)).log()
    normal = torch.distributions.Normal(-1.2, 1.2)
    want = (torch.arange(256, dtype=F64) + 1.0) / 256
    torch.testing.assert_close(normal.cdf(logs), want, rtol=0, atol=1e-6)


def test_times_stay_on_the_schedule() -> None:
    uniform = torch.tensor([0.0, 0.3, 1.0 - 2.0**-24])
    narrow = times.LogNormal().draw(uniform, schedule.EDM(0.2, 0.4))
    torch.testing.assert_close(narrow[[0, 2]], torch.tensor([0.2, 0.4], dtype=F64))
    whole = times.LogNormal().draw(uniform, Linear())
    assert not whole.is_floating_point()
    assert (whole >= 1).all()
    assert (whole <= 1000).all()


@pytest.mark.parametrize("n", [2, 5, 18])
def test_the_grid_is_equation_5(n: int) -> None:
    """Identity A13: both ends are hit, then 0."""
    for power in (7.0, 3.0):
        levels = grid.Karras(power).levels(schedule.EDM(), n)
        for i, level in enumerate(levels[:-1]):
            high, low = 80.0 ** (1 / power), 0.002 ** (1 / power)
            assert level.sigma == pytest.approx((high + i / (n - 1) * (low - high)) ** power)
        assert levels[-1] == Level(1.0, 0.0)


@settings(deadline=None)
@given(n=st.integers(1, 1000))
def test_every_number_of_steps_on_a_discrete_schedule(n: int) -> None:
    """Pains 2."""
    found = grid.Karras().times(Linear(), n)
    assert len(found) == n
    assert found[0] == 1000.0
    assert all(a > b for a, b in pairwise(found))
    assert n == 1 or found[-1] == 1.0


def test_the_ends_of_the_grid() -> None:
    own = grid.Karras(sigma_min=0.1, sigma_max=10.0)
    levels = own.levels(schedule.EDM(), 4)
    assert (levels[0].sigma, levels[3].sigma) == pytest.approx((10.0, 0.1))
    assert own.declares_deficit
    assert own.reaches_noise
    assert not grid.Karras().reaches_noise
    for wrong in (grid.Karras(sigma_min=9.0, sigma_max=1.0), grid.Karras(sigma_max=100.0), grid.Karras(sigma_min=1e-4)):
        with pytest.raises(LevelError, match="within the schedule"):
            wrong.levels(schedule.EDM(), 4)


def test_a_model_carries_the_parts_together() -> None:
    """A network that returns F exactly is an exact denoiser, at every level of the schedule."""
    oracle, own = GaussianOracle(torch.tensor([0.2, -0.1], dtype=F64), 0.3), parameterization.EDM()

    class Exact(Network):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
            level = Level(1.0, math.exp(4 * c_noise[0].item()))
            known = oracle(x / own.c_in(level), level)
            return own.target(known.x0, known.eps, level)

    model = Model(Exact(), own, schedule.EDM())
    x = torch.tensor([[1.0, 2.0]], dtype=F64)
    for level in (Level(1.0, 0.7), Level(0.6, 0.8)):
        torch.testing.assert_close(model(x, level).x0, oracle(x, level).x0, rtol=1e-6, atol=1e-6)


def test_a_schedule_of_one_step() -> None:
    assert grid.Karras().times(Linear(1), 1) == [1.0]
