"""The density of the probability flow, and the solvers that give each row its own steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffkit import DivergedError, Level, UsageError
from diffkit.likelihood import (
    TABLEAUS,
    Adaptive,
    Fixed,
    bits_per_dim,
    dequantise,
    divergence,
    log_density,
    solve,
    standard_normal,
)
from diffkit.testing import GaussianOracle
from diffkit.testing.fixtures import EXPLODING, RECTIFIED, TRIG, WAVY, gaussian, mixture

F64 = torch.float64
CURVES = {"trigonometric": TRIG, "exploding": EXPLODING, "flow": RECTIFIED, "random scale": WAVY}
FINE = Adaptive(1e-10, 1e-10)


def stiff(t: Tensor, y: Tensor) -> Tensor:
    """Each row at a pace of its own."""
    pace = torch.arange(1, len(y) + 1, dtype=F64)[:, None] ** 2
    return -pace * (y - torch.cos(t)[:, None]) + torch.sin(3 * y)


@pytest.mark.parametrize(("method", "scipy_name"), [("rk45", "RK45"), ("rk23", "RK23")])
def test_every_row_is_what_scipy_gives_it_alone(method: str, scipy_name: str) -> None:
    """Pains 16: as one problem of 12 numbers the rows would share their steps."""
    y = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)))
    calls = []

    def counted(t: Tensor, v: Tensor) -> Tensor:
        calls.append(len(v))
        return stiff(t, v)

    found = solve(counted, y, 0.0, 2.0, Adaptive(1e-5, 1e-7, TABLEAUS[method]))
    evaluations = []
    for row in range(4):

        def alone(t: float, v: np.ndarray, row: int = row) -> np.ndarray:
            batch = torch.zeros(4, 3, dtype=F64)
            batch[row] = torch.from_numpy(v)
            return stiff(torch.full((4,), t, dtype=F64), batch)[row].numpy()

        want = solve_ivp(alone, (0.0, 2.0), y[row].numpy(), method=scipy_name, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found[row], want.y[:, -1], rtol=1e-9, atol=1e-12)
        evaluations.append(want.nfev)
    assert len(calls) == max(evaluations)


def test_backwards_in_time_is_the_inverse() -> None:
    y = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    there = solve(stiff, y, 0.0, 0.5, FINE)
    torch.testing.assert_close(solve(stiff, there, 0.5, 0.0, FINE), y, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "order"), [("rk2", 2), ("rk4", 4)])
def test_fixed_steps_have_their_order(name: str, order: int) -> None:
    y = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    want = solve(stiff, y, 0.1, 1.0, FINE)
    errors = [
        float((solve(stiff, y, 0.1, 1.0, Fixed(steps, TABLEAUS[name], power=1.0)) - want).abs().max())
        for steps in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_failures_name_the_row_and_end() -> None:
    """Pains 15: an adaptive solver that hangs is worse than one that fails."""

    def broken(t: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError("the network")

    with pytest.raises(ZeroDivisionError, match="network"):
        solve(broken, torch.ones(3, 2, dtype=F64), 0.0, 1.0, Adaptive())
    start = torch.tensor([[0.1], [2.0]], dtype=F64)
    with pytest.raises(DivergedError, match="sample 1 of the batch"):
        solve(lambda t, y: y**2, start, 0.0, 1.0, Adaptive())
    with pytest.raises(DivergedError, match="sample 1 of the batch is not finite"):
        solve(stiff, torch.tensor([[1.0], [math.nan]], dtype=F64), 0.0, 1.0, Adaptive())
    with pytest.raises(DivergedError, match="not finite") as caught:
        solve(lambda t, y: y**2 * 1e300, start, 0.0, 1.0, Fixed(4))
    assert caught.value.code == "DK511"


@pytest.mark.parametrize("name", CURVES)
def test_the_likelihood_is_exact_with_the_exact_prior(name: str) -> None:
    """Identity G3 on correlated Gaussian data."""
    oracle, curve = gaussian(), CURVES[name]
    span = curve.t_noise - curve.t_clean
    t, s = (curve.level(curve.t_clean + span * u) for u in (0.95, 0.1))
    x = s.add_noise(oracle.sample(4, torch.Generator().manual_seed(0)), torch.randn(4, 2, dtype=F64))
    found = log_density(oracle, x, s, t, prior=oracle.log_density, solver=FINE)
    torch.testing.assert_close(found.log_density, oracle.log_density(x, s), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.latent, oracle.flow(x, s, t), rtol=1e-7, atol=1e-7)
    assert found.nfe > 10


def test_the_likelihood_of_a_mixture() -> None:
    """Identities E1, G3: a density that is not Gaussian."""
    s, t = TRIG.level(0.05), TRIG.level(1.0)
    x = torch.tensor([[0.9, 0.3], [-0.5, 0.2], [2.0, -2.0]], dtype=F64)
    oracle = mixture()
    found = log_density(oracle, x, s, t, prior=oracle.log_density, solver=Adaptive(1e-8, 1e-8))
    torch.testing.assert_close(found.log_density, oracle.log_density(x, s), rtol=1e-6, atol=1e-6)


def test_with_the_prior_of_samplers_it_is_the_likelihood_of_the_model() -> None:
    """The law of what the flow makes of N(0, sigma_T^2): for Gaussian data that is linear, so its density is known."""
    oracle, s, t = GaussianOracle(torch.tensor([0.8], dtype=F64), 0.3), TRIG.level(0.02), TRIG.level(0.7)
    x = torch.tensor([[0.1], [0.9], [1.7]], dtype=F64)
    zero, unit = (oracle.flow(torch.tensor([[v]], dtype=F64), t, s) for v in (0.0, 1.0))
    mean, std = zero, (unit - zero) * t.sigma
    want = torch.distributions.Normal(mean, std).log_prob(x)[:, 0]
    found = log_density(oracle, x, s, t, solver=FINE).log_density
    torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)
    assert float((found - oracle.log_density(x, s)).abs().max()) > 0.01


def test_the_prior_is_what_samplers_start_from() -> None:
    x = torch.randn(3, 2, 2, dtype=F64)
    want = torch.distributions.Normal(0.0, float(EXPLODING.noise.sigma)).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(standard_normal(x, EXPLODING.noise), want)


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
    s, t = WAVY.level(0.1), WAVY.level(0.9)
    x = torch.randn(4, 2, dtype=F64)
    signs = torch.tensor([[1.0, -1.0]], dtype=F64).expand(4, 2)
    one = log_density(diagonal, x, s, t, probes=[signs], solver=FINE).log_density
    torch.testing.assert_close(one, log_density(diagonal, x, s, t, solver=FINE).log_density)
    correlated = [log_density(gaussian(), x, s, t, probes=p).log_density for p in (None, [signs])]
    assert float((correlated[0] - correlated[1]).abs().max()) > 1e-3


def test_fixed_steps_give_the_density_too() -> None:
    oracle = gaussian()
    s, t = TRIG.level(0.01), TRIG.level(0.95)
    x = torch.tensor([[0.3, -0.4], [1.1, 0.2]], dtype=F64)
    found = log_density(oracle, x, s, t, prior=oracle.log_density, solver=Fixed(60))
    torch.testing.assert_close(found.log_density, oracle.log_density(x, s), rtol=1e-5, atol=1e-5)
    assert found.nfe == 240


def test_single_precision_examples_are_integrated_in_double() -> None:
    oracle, s, t = gaussian(), TRIG.level(0.05), TRIG.level(0.95)
    x = torch.tensor([[0.3, -0.4], [1.1, 0.2]])
    found = log_density(oracle, x, s, t, prior=oracle.log_density)
    assert found.log_density.dtype == F64
    assert found.latent.dtype == torch.float32
    torch.testing.assert_close(found.log_density, oracle.log_density(x.double(), s), rtol=0, atol=1e-4)


def test_bits_at_the_middle_of_a_bin_are_the_density_and_an_offset() -> None:
    """Identity G2; pains 15: log2(127.5) for 8 bits, where adding 7 is the offset of another scaling."""
    oracle, s, t = GaussianOracle(torch.tensor([0.1, 0.0], dtype=F64), 0.3), TRIG.level(1e-5), TRIG.level(0.99)
    x0 = torch.tensor([[12, 200], [130, 90]], dtype=F64) / 127.5 - 1
    found, calls = bits_per_dim(oracle, x0, s, t, bins=256, method="none", prior=oracle.log_density, solver=FINE)
    want = -oracle.log_density(x0) / 2 / math.log(2) + math.log2(127.5)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
    assert calls > 10


def test_bits_do_not_depend_on_the_scale_of_the_levels() -> None:
    """The same signal-to-noise ratios at another scale, as of EDM, are another change of variables of the same law."""
    oracle, s, t = GaussianOracle(torch.tensor([0.2], dtype=F64), 0.1), TRIG.level(0.1), TRIG.level(0.99)
    x0, u = torch.linspace(-1, 1, 5, dtype=F64)[:, None], torch.full((5, 1), 0.3, dtype=F64)
    options: dict[str, Any] = {"bins": 5, "draws": [u], "prior": oracle.log_density, "solver": Fixed(40)}
    want, _ = bits_per_dim(oracle, x0, s, t, **options)
    for scale in (0.25, 3.0):
        found, _ = bits_per_dim(oracle, x0, s.rescaled(scale), t.rescaled(2.0), **options)
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_fixed_steps_are_short_near_zero() -> None:
    """dy/dt = y / (2 sqrt(t)) from t = 0.0001 to 1, y = exp(sqrt(t)): a power above 1 puts the steps where it bends."""
    y = torch.ones(1, 1, dtype=F64)
    want = math.exp(1.0 - 0.01)

    def error(power: float) -> float:
        found = solve(lambda t, y: y / (2 * t.sqrt()[:, None]), y, 1e-4, 1.0, Fixed(20, power=power))
        return abs(float(found) - want)

    assert error(3.0) < 1e-2 * error(1.0)


@pytest.mark.parametrize("method", ["uniform", "variational"])
def test_dequantisation_bounds_the_code_length(method: str) -> None:
    """Identity G7 with five values: E[-log2 p / q] is never below -log2 of the probability of the bin."""
    oracle, t = GaussianOracle(torch.tensor([0.2], dtype=F64), 0.1), TRIG.level(0.99)
    s = TRIG.level(1e-5 if method == "uniform" else 0.1)  # sigma / alpha = 0.16: inside a bin and outside of it
    x0, width, count = torch.linspace(-1, 1, 5, dtype=F64)[:, None], 0.5, 11
    u = ((torch.arange(count, dtype=F64) + 0.5) / count).repeat(5)[:, None]
    options: dict[str, Any] = {"bins": 5, "method": method, "prior": oracle.log_density, "solver": Fixed(20)}
    bits, _ = bits_per_dim(oracle, x0.repeat_interleave(count, 0), s, t, draws=[u], **options)
    # The density is that of x_s / alpha_s: normal with the variance of the data and of the noise.
    law = torch.distributions.Normal(0.2, math.sqrt(0.1 + float(s.ratio) ** 2))
    exact = -torch.log2(law.cdf(x0 + width / 2) - law.cdf(x0 - width / 2))[:, 0]
    mean = bits.reshape(5, count).mean(1)
    assert bool((mean > exact - 1e-3).all())
    assert float((mean - exact).max()) > 0.01
    many, calls = bits_per_dim(oracle, x0, s, t, draws=list(u.reshape(5, count).T[:, :, None]), **options)
    assert calls == count * 80
    torch.testing.assert_close(many, exact, rtol=0, atol=0.1)
    assert bool((many < mean).all())


@pytest.mark.parametrize("method", ["uniform", "variational"])
def test_dequantisation_never_falls_back_to_the_middle_of_a_bin(method: str) -> None:
    x0, level = torch.zeros(1, 1, dtype=F64), TRIG.level(0.1)
    with pytest.raises(UsageError, match="requires random numbers") as caught:
        dequantise(x0, None, 5, level, method)  # type: ignore[arg-type]
    assert caught.value.code == "DK522"
    with pytest.raises(UsageError, match="requires data with the values"):
        dequantise(x0 + 0.1, x0, 5, level, method)  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "power"), [(0, 3.0), (-1, 3.0), (5, 0.0)])
def test_fixed_steps_that_do_not_exist_are_refused(steps: int, power: float) -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        Fixed(steps, power=power)


def test_a_method_without_an_error_estimate_is_not_adaptive() -> None:
    with pytest.raises(ValueError, match="with an error estimate"):
        Adaptive(tableau=TABLEAUS["rk4"])
    with pytest.raises(ValueError, match="tolerance > 0"):
        Adaptive(0.0, 0.0)


def test_the_density_of_the_draws_is_what_dequantise_returns() -> None:
    """The truncated normal integrates to one over its bin, and its quantiles stay inside."""
    level, count = Level(math.cos(0.2), math.sin(0.2)), 20001
    u = ((torch.arange(count, dtype=F64) + 0.5) / count)[:, None]
    y, log_q = dequantise(torch.zeros(count, 1, dtype=F64), u, 5, level, "variational")
    assert float(y.abs().max()) < 0.25
    assert float(torch.trapezoid(log_q.exp(), y[:, 0])) == pytest.approx(1.0, abs=2e-4)
    flat, log_flat = dequantise(torch.zeros(count, 1, dtype=F64), u, 5, level)
    assert float(torch.trapezoid(log_flat.exp(), flat[:, 0])) == pytest.approx(1.0, abs=2e-4)
