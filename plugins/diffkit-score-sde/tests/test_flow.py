"""The probability flow with error control."""

from __future__ import annotations

import pytest
import torch
from diffkit_score_sde.flow import ProbabilityFlow
from diffkit_score_sde.schedule import VE, VP, SubVP
from torch import Tensor

from diffkit import Estimate, Level, Schedule, sample
from diffkit.basics.grid import Trailing
from diffkit.testing import GaussianOracle, MixtureOracle
from diffkit.testing.fixtures import RECTIFIED, WAVY

F64 = torch.float64
LINE = MixtureOracle([0.4, 0.6], [-0.9, 0.7], [0.09, 0.2])
CURVES = {"vp": VP(), "sub-vp": SubVP(), "ve": VE(), "flow": RECTIFIED, "random scale": WAVY}


@pytest.mark.parametrize("name", CURVES)
def test_the_flow_is_the_quantile_map_on_every_curve(name: str) -> None:
    """Identity E4, at the given tolerance; in one step, as the levels are only the points at which it stops."""
    curve = CURVES[name]
    span = curve.t_noise - curve.t_clean
    t, s = (curve.level(curve.t_clean + span * u) for u in (0.95, 0.1))
    x = t.scale * torch.tensor([[-1.7], [-0.2], [0.3], [2.0]], dtype=F64)
    want = LINE.flow(x, t, s)
    errors = [
        float((sample(LINE, ProbabilityFlow(rtol=tol, atol=tol), [t, s], x) - want).abs().max()) / s.scale
        for tol in (1e-3, 1e-9)
    ]
    assert 1e-7 < errors[0] < 5e-2
    assert errors[1] < 1e-7


@pytest.mark.parametrize(("method", "calls"), [("RK23", 60), ("RK45", 40), ("DOP853", 60)])
def test_methods_differ_in_evaluations(method: str, calls: int) -> None:
    count = 0

    def counted(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal count
        count += 1
        return LINE(x, level)

    sampler = ProbabilityFlow(method=method, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]
    sample(counted, sampler, [VP().level(0.95), VP().level(0.1)], torch.ones(2, 1, dtype=F64))
    assert 10 < count < calls * 3
    assert sampler.nfe(1) is None
    assert sampler.syncs


def test_the_last_step_stops_where_networks_do_and_takes_tweedie() -> None:
    visited: list[float] = []

    def watched(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        ratio = torch.as_tensor(level.sigma) / torch.as_tensor(level.alpha)
        visited.append(float(ratio.min()))
        return LINE(x, level)

    x = torch.tensor([[-1.0], [0.5]], dtype=F64)
    levels = Trailing().levels(VP(), 1)
    found = sample(watched, ProbabilityFlow(stop=0.02), levels, x)
    assert min(visited) == pytest.approx(0.02)
    torch.testing.assert_close(found, LINE.flow(x, levels[0], Level(1.0, 1e-9)), rtol=0, atol=2e-3)
    near = sample(watched, ProbabilityFlow(stop=0.5), levels, x)
    assert float((near - found).abs().max()) > 1e-3
    level = VP().level(1e-5)
    alone = sample(watched, ProbabilityFlow(stop=0.02), [level, VP().clean], x)
    torch.testing.assert_close(alone, LINE(x, level).x0)


def test_conditions_of_the_whole_batch_reach_every_evaluation() -> None:
    """Labels are bound for the batch, so the field evaluates all rows even when some are done."""
    sizes: list[int] = []

    def conditional(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        sizes.append(len(x))
        return GaussianOracle(0.0, 1.0)(x, level)

    sample(conditional, ProbabilityFlow(), [VP().level(0.9), VP().level(0.1)], torch.randn(7, 2))
    assert set(sizes) == {7}


def test_single_precision_and_images() -> None:
    """Samples keep their shape and type; the solver works in float64."""
    oracle = GaussianOracle(0.2, 0.4)
    x = torch.randn(2, 1, 3, 3)
    levels = Trailing().levels(VP(), 1)
    found = sample(oracle, ProbabilityFlow(), levels, x)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, oracle.flow(x, levels[0], Level(1.0, 0.0)), rtol=0, atol=1e-3)


def test_pure_noise_is_a_start() -> None:
    curve: Schedule = RECTIFIED
    x = torch.tensor([[-1.0], [0.4]], dtype=F64)
    found = sample(LINE, ProbabilityFlow(rtol=1e-8, atol=1e-8), [curve.noise, curve.level(0.2)], x)
    torch.testing.assert_close(found, LINE.flow(x, curve.noise, curve.level(0.2)), rtol=0, atol=1e-6)
