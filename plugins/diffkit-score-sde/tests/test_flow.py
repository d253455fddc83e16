"""The probability flow with error control, and the likelihood it gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffkit_score_sde.flow import ProbabilityFlow
from diffkit_score_sde.likelihood import bits_per_dimension, divergence, log_density, standard
from diffkit_score_sde.schedule import VE, VP, SubVP
from diffkit_score_sde.solver import Array, solve
from scipy.integrate import solve_ivp
from torch import Tensor

from diffkit import DivergedError, Estimate, Level, Schedule, sample
from diffkit.basics.grid import Trailing
from diffkit.testing import GaussianOracle, MixtureOracle
from diffkit.testing.fixtures import RECTIFIED, WAVY, gaussian, mixture

F64 = torch.float64
LINE = MixtureOracle([0.4, 0.6], [-0.9, 0.7], [0.09, 0.2])
CURVES = {"vp": VP(), "sub-vp": SubVP(), "ve": VE(), "flow": RECTIFIED, "random scale": WAVY}


def stiff(t: Array, y: Array) -> Array:
    """Each row at a pace of its own."""
    pace = np.arange(1, len(y) + 1)[:, None] ** 2
    found: Array = -pace * (y - np.cos(t)[:, None]) + np.sin(3 * y)
    return found


@pytest.mark.parametrize("method", ["RK45", "RK23", "DOP853"])
def test_every_row_is_what_scipy_gives_it_alone(method: str) -> None:
    """Pains 16: as one problem of 12 numbers the rows would share their steps."""
    y = np.random.default_rng(0).normal(size=(4, 3))
    found = solve(stiff, y, 0.0, 2.0, method=method, rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
    for row in range(4):

        def alone(t: float, v: Array, row: int = row) -> Array:
            batch = np.zeros((4, 3))
            batch[row] = v
            return stiff(np.full(4, t), batch)[row]

        want = solve_ivp(alone, (0.0, 2.0), y[row], method=method, rtol=1e-5, atol=1e-7).y[:, -1]
        np.testing.assert_array_equal(found[row], want)


def test_a_batch_costs_as_much_as_its_slowest_row() -> None:
    calls = []

    def counted(t: Array, y: Array) -> Array:
        calls.append(len(y))
        return stiff(t, y)

    solve(counted, np.ones((5, 2)), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    alone = []
    for r in range(1, 6):

        def last(t: float, v: Array, r: int = r) -> Array:
            return stiff(np.full(r, t), np.tile(v, (r, 1)))[-1]

        alone.append(solve_ivp(last, (0.0, 1.0), np.ones(2), rtol=1e-6, atol=1e-6).nfev)
    slowest = max(alone)
    assert len(calls) == slowest
    assert set(calls) == {5}


def test_failures_end_all_rows() -> None:
    """Pains 15: an adaptive solver that hangs is worse than one that fails."""

    def broken(t: Array, y: Array) -> Array:
        raise ZeroDivisionError("the network")

    with pytest.raises(ZeroDivisionError, match="network"):
        solve(broken, np.ones((3, 2)), 0.0, 1.0, rtol=1e-5, atol=1e-5)
    with pytest.raises(DivergedError, match="sample 0"):
        solve(lambda t, y: y**2, np.full((2, 1), 2.0), 0.0, 1.0, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="finite"):
        solve(stiff, np.array([[1.0], [math.nan]]), 0.0, 1.0, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("name", CURVES)
def test_the_likelihood_is_exact_with_the_exact_prior(name: str) -> None:
    """Identity G3 on correlated Gaussian data."""
    oracle, curve = gaussian(), CURVES[name]
    span = curve.t_noise - curve.t_clean
    t, s = (curve.level(curve.t_clean + span * u) for u in (0.95, 0.1))
    x = s.add_noise(oracle.sample(4, torch.Generator().manual_seed(0)), torch.randn(4, 2, dtype=F64))
    found = log_density(oracle, x, s, t, prior=oracle.log_density, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_density, oracle.log_density(x, s), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.latent, oracle.flow(x, s, t), rtol=1e-7, atol=1e-7)
    assert found.nfe > 10


def test_the_likelihood_of_a_mixture() -> None:
    """Identities E1, G3: a density that is not Gaussian."""
    s, t = VP().level(0.05), VP().level(1.0)
    x = torch.tensor([[0.9, 0.3], [-0.5, 0.2], [2.0, -2.0]], dtype=F64)
    oracle = mixture()
    found = log_density(oracle, x, s, t, prior=oracle.log_density, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_density, oracle.log_density(x, s), rtol=1e-6, atol=1e-6)


def test_with_the_prior_of_samplers_it_is_the_likelihood_of_the_model() -> None:
    """The law of what the flow makes of N(0, sigma_T^2): for Gaussian data that is linear, so its density is known."""
    oracle, s, t = GaussianOracle(torch.tensor([0.8], dtype=F64), 0.3), VP().level(0.02), VP(beta_max=3.0).level(1.0)
    x = torch.tensor([[0.1], [0.9], [1.7]], dtype=F64)
    zero, unit = (oracle.flow(torch.tensor([[v]], dtype=F64), t, s) for v in (0.0, 1.0))
    mean, std = zero, (unit - zero) * t.sigma
    want = torch.distributions.Normal(mean, std).log_prob(x)[:, 0]
    found = log_density(oracle, x, s, t, rtol=1e-10, atol=1e-10).log_density
    torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)
    assert float((found - oracle.log_density(x, s)).abs().max()) > 0.01


def test_the_prior_is_what_samplers_start_from() -> None:
    x = torch.randn(3, 2, 2, dtype=F64)
    want = torch.distributions.Normal(0.0, 50.0).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(standard(x, VE().noise), want)


def test_random_signs_are_exact_on_a_diagonal_and_on_average() -> None:
    """Identity G4: one probe if the Jacobian is diagonal, else the mean over all sign vectors."""
    y = torch.randn(3, 2, dtype=F64, requires_grad=True)
    matrix = torch.tensor([[1.5, 0.7], [0.7, -0.4]], dtype=F64)
    signs = [torch.tensor([s], dtype=F64).expand(3, 2) for s in itertools.product((-1.0, 1.0), repeat=2)]
    exact = divergence(y @ matrix.T, y, None)
    torch.testing.assert_close(exact, torch.full((3,), 1.1, dtype=F64))
    torch.testing.assert_close(divergence(y @ matrix.T, y, signs), exact)
    assert not torch.allclose(divergence(y @ matrix.T, y, signs[:1]), exact)
    torch.testing.assert_close(divergence(y @ torch.diag(matrix.diag()), y, signs[:1]), exact)


def test_probes_reach_the_likelihood() -> None:
    diagonal = GaussianOracle(0.1, torch.tensor([0.4, 0.9], dtype=F64))
    s, t = SubVP().level(0.1), SubVP().level(0.9)
    x = torch.randn(4, 2, dtype=F64)
    signs = torch.tensor([[1.0, -1.0]], dtype=F64).expand(4, 2)
    one = log_density(diagonal, x, s, t, probes=[signs], rtol=1e-9, atol=1e-9).log_density
    torch.testing.assert_close(one, log_density(diagonal, x, s, t, rtol=1e-9, atol=1e-9).log_density)
    correlated = [log_density(gaussian(), x, s, t, probes=p).log_density for p in (None, [signs])]
    assert float((correlated[0] - correlated[1]).abs().max()) > 1e-3


def curve_ends() -> tuple[Level, Level]:
    return VP().level(1e-4), VP().level(1.0)


def test_bits_at_the_middle_of_a_bin_are_the_density_and_an_offset() -> None:
    """Identity G2; pains 15: log2(127.5) for 8 bits, where adding 7 is the offset of another scaling."""
    oracle, (s, t) = GaussianOracle(torch.tensor([0.1, 0.0], dtype=F64), 0.3), curve_ends()
    x0 = torch.tensor([[12, 200], [130, 90]], dtype=F64) / 127.5 - 1
    found = bits_per_dimension(oracle, x0, s, t, bins=256, uniform=None, prior=oracle.log_density, rtol=1e-9, atol=1e-9)
    want = -oracle.log_density(x0) / 2 / math.log(2) + math.log2(127.5)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


def test_dequantisation_bounds_the_code_length() -> None:
    """Identity G7 with five values: the mean over u is never below -log2 of the probability of the bin."""
    oracle, (s, t) = GaussianOracle(torch.tensor([0.2], dtype=F64), 0.1), curve_ends()
    x0, width, count = torch.linspace(-1, 1, 5, dtype=F64)[:, None], 0.5, 41
    u = (torch.arange(count, dtype=F64) + 0.5) / count
    bits = bits_per_dimension(
        oracle,
        x0.repeat_interleave(count, 0),
        s,
        t,
        bins=5,
        uniform=u.repeat(5)[:, None],
        prior=oracle.log_density,
        rtol=1e-8,
        atol=1e-8,
    )
    law = torch.distributions.Normal(0.2, math.sqrt(0.1))
    exact = -torch.log2(law.cdf(x0 + width / 2) - law.cdf(x0 - width / 2))[:, 0]
    bound = bits.reshape(5, count).mean(1)
    assert bool((bound > exact - 1e-3).all())
    assert float((bound - exact).max()) > 0.05


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
