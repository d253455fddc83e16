"""Adams methods in charts, and the grid of angles."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_dpmsolver.adams import Adams
from diffkit_dpmsolver.grid import Angle
from diffkit_dpmsolver.multistep import DPMpp2M
from diffkit_dpmsolver.unipc import UniPC
from hypothesis import given, settings, strategies as st
from torch import Tensor

from diffkit import Estimate, Level, LevelError, Sampler, StepInfo, sample
from diffkit.basics.grid import Trailing
from diffkit.ddpm.schedule import Linear
from diffkit.testing import GaussianOracle, MixtureOracle, PointMassOracle
from diffkit.testing.order import logsnr_levels, measure

F64 = torch.float64
MIXTURE = MixtureOracle([0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.04, 0.09])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)
CHARTS = ["sigma", "flow", "angle"]
CLEAN = Level(1.0, 0.0)


def at(angle: float) -> Level:
    return Level(math.cos(angle), math.sin(angle))


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_measured_order(chart: Any, p: Any) -> None:
    """The predictor is of order p; the corrector makes it p + 1 where the start does not limit it."""
    steps = (80, 160, 320)
    assert measure(Adams(p, chart, corrector=False), steps, exact_starts=p).slope == pytest.approx(p, abs=0.2)
    corrected = measure(Adams(p, chart), steps, exact_starts=p)
    assert corrected.slope > p + 0.3
    assert Adams(p, chart).order == p


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_slopes_that_are_polynomials_of_the_angle_are_integrated_exactly(p: Any) -> None:
    """As identity F4, in the angle: v = sum_k c_k angle^k is exact for degree < p, from an exact history."""
    powers = [0.3, -1.0, 0.7, 0.2][:p]

    def denoise(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        v = sum(c * float(level.angle) ** k for k, c in enumerate(powers))
        return Estimate(level, level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v)

    def whole(angle: float) -> float:
        return sum(c * angle ** (k + 1) / (k + 1) for k, c in enumerate(powers))

    angles = [1.5, 1.3, 1.2, 0.9, 0.5, 0.45, 0.1]
    sampler, state = Adams(p, corrector=False), None
    for i, (a, b) in enumerate(pairwise(angles)):
        start = X + whole(a)
        got, state = sampler.step(denoise, start, at(a), at(b), state, torch.zeros_like)
        if i >= p - 1:
            torch.testing.assert_close(got, X + whole(b), rtol=1e-12, atol=1e-12)


def test_k_diffusion_lms() -> None:
    """Its linear multistep is Adams-Bashforth in the chart sigma."""
    golden = json.loads((Path(__file__).parent / "golden" / "k-diffusion.json").read_text())
    oracle = GaussianOracle(torch.tensor([golden["mean"]], dtype=F64), golden["variance"])
    levels = [Level(1.0, sigma) for sigma in golden["sigmas"][:-1]]
    x = torch.tensor(golden["start"], dtype=F64)[:, None]
    got = sample(oracle, Adams(3, "sigma", corrector=False), levels, x)
    torch.testing.assert_close(got[:, 0], torch.tensor(golden["results"]["lms-3"], dtype=F64), rtol=1e-9, atol=1e-9)


def test_the_first_order_without_corrector_is_ddim() -> None:
    """Identity A8b, in the two charts where alpha and sigma are affine in the clock."""
    t, s = Linear().level(700.0), Linear().level(400.0)
    for chart in ("sigma", "flow"):
        got, _ = Adams(1, chart, corrector=False).step(MIXTURE, X, t, s, None, torch.zeros_like)  # type: ignore[arg-type]
        torch.testing.assert_close(got, MIXTURE(X, t).step_to(s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("chart", ["sigma", "flow"])
def test_a_point_mass_is_reached_exactly(n: int, chart: Any) -> None:
    """Identity F2, pains 19: either end, few steps."""
    oracle = PointMassOracle(torch.tensor([0.7], dtype=F64))
    for last in (CLEAN, at(0.01)):
        levels = [*[at(1.5 - 1.2 * (i / n) ** 0.7) for i in range(n)], last]
        t = levels[0]
        want = last.alpha * 0.7 + last.sigma * (X - t.alpha * 0.7) / t.sigma
        torch.testing.assert_close(sample(oracle, Adams(3, chart), levels, X), want, rtol=1e-10, atol=1e-10)


def test_it_runs_from_pure_noise_to_clean_data() -> None:
    """No special case at either end: the whole path of a Gaussian, from alpha = 0 to sigma = 0."""
    oracle = GaussianOracle(torch.tensor([0.3], dtype=F64), 0.25)
    levels = [at(math.pi / 2 * (1 - i / 40)) for i in range(41)]
    levels[0], levels[-1] = Level(0.0, 1.0), CLEAN
    for p in (2, 3):
        got = sample(oracle, Adams(p), levels, X)  # type: ignore[arg-type]
        torch.testing.assert_close(got, 0.3 + 0.5 * X, rtol=1e-4, atol=1e-4)
    assert Adams().reaches_noise
    assert not Adams(chart="sigma").reaches_noise

    def unasked(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        raise AssertionError("the network was evaluated before the chart raised")

    for denoise in (oracle, unasked):
        with pytest.raises(LevelError, match="chart angle"):
            sample(denoise, Adams(chart="sigma"), levels, X)


def test_options_change_the_result() -> None:
    """Pains 25."""
    levels = [*logsnr_levels(6), CLEAN]
    results = [
        sample(MIXTURE, sampler, levels, X)
        for sampler in (Adams(), Adams(2), Adams(4), Adams(corrector=False), Adams(chart="flow"), Adams(chart="sigma"))
    ]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-5 for other in results[:i])


def test_evaluations() -> None:
    steps: list[StepInfo] = []
    sample(MIXTURE, Adams(), [*logsnr_levels(8), CLEAN], X, on_step=steps.append)
    assert steps[-1].nfe == 9 == Adams().nfe(9)


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_error_is_below_that_of_the_others(n: int) -> None:
    """On the exact flow of a mixture, from the same start: the claim of docs/choose-a-sampler.md."""
    x = torch.special.ndtri((torch.arange(200, dtype=F64) + 0.5) / 200)[:, None]
    want = MIXTURE.flow(x, Linear().noise, CLEAN)

    def error(sampler: Sampler, levels: list[Level]) -> float:
        return float((sample(MIXTURE, sampler, levels, x) - want).square().mean().sqrt())

    ours = error(Adams(), Angle().levels(Linear(), n))
    for other in (DPMpp2M(), UniPC(2), UniPC(3)):
        assert ours < 0.6 * error(other, Trailing().levels(Linear(), n))
        assert ours < 0.9 * error(other, Angle().levels(Linear(), n))


@settings(deadline=None)
@given(n=st.integers(1, 1000), power=st.floats(0.5, 4.0))
def test_the_grid_of_angles_for_every_number_of_steps(n: int, power: float) -> None:
    """Pains 2."""
    found = Angle(power).times(Linear(), n)
    assert len(found) == n
    assert found[0] == 1000.0
    assert all(a > b >= 1 for a, b in pairwise(found))


def test_the_grid_of_angles_is_its_formula() -> None:
    from diffkit.testing import fixtures

    levels = Angle(2.0).levels(fixtures.TRIG, 4)
    top = float(fixtures.TRIG.noise.angle)
    low = float(fixtures.TRIG.level(fixtures.TRIG.t_clean).angle)
    for i, level in enumerate(levels[:-1]):
        assert float(level.angle) == pytest.approx(low + (top - low) * (1 - i / 4) ** 2)
    assert levels[-1].is_clean
