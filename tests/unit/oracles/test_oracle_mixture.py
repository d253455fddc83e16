"""Identities E1 to E4 of mixtures, and polynomials (F4)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from diffkit import Level
from diffkit.errors import LevelError
from diffkit.schedule import sde
from diffkit.testing import GaussianOracle, MixtureOracle, PolynomialOracle, fixtures
from diffkit.testing.hypothesis_strategies import levels, mixtures_1d
from diffkit.testing.order import curve, logsnr_levels

DOUBLE = torch.float64


def test_one_component_is_the_gaussian() -> None:
    gaussian = fixtures.gaussian()
    mixture = MixtureOracle([1.0], gaussian.mean[None], gaussian.matrix[None])
    x, level = torch.randn(4, 2, dtype=DOUBLE), Level(0.6, 0.8)
    for name in ("x0", "eps"):
        torch.testing.assert_close(getattr(mixture(x, level), name), getattr(gaussian(x, level), name))
    torch.testing.assert_close(mixture.covariance(x, level), gaussian.covariance(x, level))
    torch.testing.assert_close(mixture.log_density(x, level), gaussian.log_density(x, level))


@given(levels())
def test_tweedie(level: Level) -> None:
    """E1, E2: x0* and its covariance from the first and second derivative of log p."""
    oracle = fixtures.mixture()
    x = level.add_noise(oracle.sample(3, torch.Generator().manual_seed(0)), torch.ones(3, 2, dtype=DOUBLE))
    x.requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_density(x, level).sum(), x, create_graph=True)
    x0 = oracle(x, level).x0
    want = (x + level.sigma**2 * score) / level.alpha
    size = max(1.0, float(x.detach().abs().max()) / float(level.alpha))
    torch.testing.assert_close(x0 / size, want / size, rtol=1e-8, atol=1e-8)
    rows = [torch.autograd.grad(x0[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    jacobian = torch.stack(rows, 1)
    got = oracle.covariance(x.detach(), level)
    torch.testing.assert_close(got, level.sigma**2 / level.alpha * jacobian, rtol=1e-7, atol=1e-8)


@given(mixtures_1d(), levels())
def test_quadrature(oracle: MixtureOracle, level: Level) -> None:
    """E3: Var x0 = mmse + Var x0*, E[score] = 0, E[x score] = -1."""
    x, width = oracle._nodes(level)
    p = torch.exp(oracle.log_density(x, level)) * width
    x0, score = oracle(x, level).x0[:, 0], oracle.score(x, level)[:, 0]
    mean = float((p * x0).sum())
    spread = float((p * (x0 - mean) ** 2).sum())
    w, m, s = oracle._weights, oracle._means[:, 0], oracle._variances[:, 0]
    variance = float((w * (s + m**2)).sum() - (w * m).sum() ** 2)
    assert mean == pytest.approx(float((w * m).sum()), abs=1e-8)
    assert oracle.mmse(level) + spread == pytest.approx(variance, rel=1e-6, abs=1e-8)
    assert float((p * score).sum()) * float(level.sigma) == pytest.approx(0.0, abs=1e-6)
    assert float((p * x[:, 0] * score).sum()) == pytest.approx(-1.0, rel=1e-6)


@given(mixtures_1d(), levels(), levels())
def test_flow_is_the_quantile_map(oracle: MixtureOracle, t: Level, s: Level) -> None:
    """E4: monotone, there and back again, composing through any level between."""
    m, std = oracle._line(t, oracle._means)
    x = torch.linspace(float((m - 3 * std).min()), float((m + 3 * std).max()), 9, dtype=DOUBLE)[:, None]
    y = oracle.flow(x, t, s)
    assert bool((y[1:] > y[:-1]).all())
    scale = float((x.max() - x.min()).abs())
    torch.testing.assert_close(oracle.flow(y, s, t) / scale, x / scale, rtol=1e-6, atol=1e-6)


def test_flow_solves_the_ode() -> None:
    """E4, at 1e-9 for the map itself: dx/dt = f x - g^2 score / 2."""
    oracle, schedule, t, h = curve(), fixtures.TRIG, 0.4, 1e-5
    x, at = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None], fixtures.TRIG.level(0.4)
    slope = (oracle.flow(x, at, schedule.level(t + h)) - oracle.flow(x, at, schedule.level(t - h))) / (2 * h)
    f, g2 = sde(schedule, torch.tensor([t], dtype=DOUBLE))
    torch.testing.assert_close(slope, f * x - 0.5 * g2 * oracle.score(x, at), rtol=1e-6, atol=1e-7)
    gaussian = MixtureOracle([0.3, 0.7], [0.2, 0.2], [0.5, 0.5])
    want = GaussianOracle(torch.tensor([0.2], dtype=DOUBLE), 0.5).flow(x, *logsnr_levels(1))
    torch.testing.assert_close(gaussian.flow(x, *logsnr_levels(1)), want, rtol=1e-9, atol=1e-9)


def test_ends() -> None:
    oracle = MixtureOracle([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.0, 0.0])
    x = torch.tensor([[0.9, 0.1], [-0.2, 0.0]], dtype=DOUBLE)
    near = oracle(x, Level(1.0, 1e-12))
    torch.testing.assert_close(near.x0, torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=DOUBLE))
    assert torch.isfinite(near.eps).all()
    torch.testing.assert_close(oracle(x, Level(0.0, 1.0)).x0, torch.zeros(2, 2, dtype=DOUBLE))
    wide = fixtures.mixture()
    torch.testing.assert_close(wide(x, Level(2.0, 0.0)).x0, x / 2.0)
    assert curve().mmse(Level(1.0, 1e-6)) == pytest.approx(1e-12, rel=1e-3)


def test_labels_name_components() -> None:
    oracle, level = fixtures.mixture(), Level(0.6, 0.8)
    x = torch.randn(4, 2, dtype=DOUBLE)
    whole = oracle(x, level).x0
    parts = [oracle(x, level, label=torch.full((4,), k)).x0 for k in range(4)]
    torch.testing.assert_close(parts[3], whole)
    r = oracle.responsibilities(x, level)
    torch.testing.assert_close(sum(r[:, k : k + 1] * parts[k] for k in range(3)), whole)


def test_closed_forms_of_one_dimension_only() -> None:
    oracle = fixtures.mixture()
    for ask in (lambda: oracle.entropy(), lambda: oracle.mmse(Level(0.6, 0.8))):
        with pytest.raises(ValueError, match="one dimension"):
            ask()


@pytest.mark.parametrize("weights", [[0.5, -0.5], [0.5]])
def test_what_is_no_mixture_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive weights"):
        MixtureOracle(weights, [0.0, 1.0], [1.0, 1.0])


def test_entropy_of_far_components() -> None:
    """Components that do not overlap: the mean entropy and that of the weights."""
    oracle = MixtureOracle([0.25, 0.75], [-50.0, 50.0], [1.0, 4.0])
    parts = [0.5 * math.log(2 * math.pi * math.e * v) for v in (1.0, 4.0)]
    want = 0.25 * (parts[0] - math.log(0.25)) + 0.75 * (parts[1] - math.log(0.75))
    assert oracle.entropy() == pytest.approx(want, abs=1e-9)


def test_polynomial() -> None:
    oracle = PolynomialOracle([1.0, 2.0, 0.5])
    level = Level(0.8, 0.6)
    clock = math.log(0.8 / 0.6)
    x = torch.randn(3, 2, dtype=DOUBLE)
    estimate = oracle(x, level)
    torch.testing.assert_close(estimate.x0, torch.full_like(x, 1.0 + 2.0 * clock + 0.5 * clock**2))
    torch.testing.assert_close(level.add_noise(estimate.x0, estimate.eps), x)
    with pytest.raises(LevelError):
        oracle(x, Level(1.0, 0.0))
    with pytest.raises(ValueError, match="at least one"):
        PolynomialOracle([])
