"""Identities D1 to D15 of Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from diffkit import Level, transition
from diffkit.errors import LevelError
from diffkit.parameterization import Parameterization
from diffkit.schedule import Schedule, sde
from diffkit.testing import GaussianOracle, PointMassOracle, fixtures
from diffkit.testing.affine import Normal, first_order, posterior_kernel
from diffkit.testing.hypothesis_strategies import gaussians, levels, seeds

DOUBLE = torch.float64


def x_of(oracle: GaussianOracle, seed: int, count: int = 5) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, oracle.dimensions, generator=source, dtype=DOUBLE)


def marginal(oracle: GaussianOracle, level: Level) -> Tensor:
    return level.alpha**2 * oracle.matrix + level.sigma**2 * torch.eye(oracle.dimensions, dtype=DOUBLE)


@given(gaussians(), levels(), seeds())
def test_denoiser(oracle: GaussianOracle, level: Level, seed: int) -> None:
    """D1, D2."""
    x = x_of(oracle, seed) * float(level.scale)
    estimate = oracle(x, level)
    S_t = marginal(oracle, level)
    away = x - level.alpha * oracle.mean
    score = -torch.linalg.solve(S_t, away.T).T
    size = max(1.0, float(score.abs().max()))
    torch.testing.assert_close(oracle.score(x, level) / size, score / size, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(level.add_noise(estimate.x0, estimate.eps), x, rtol=1e-10, atol=1e-10)
    tweedie = (x + level.sigma**2 * oracle.score(x, level)) / level.alpha
    scale = max(1.0, float(x.abs().max()) / float(level.alpha))
    torch.testing.assert_close(estimate.x0 / scale, tweedie / scale, rtol=1e-9, atol=1e-9)


@given(gaussians(), levels())
def test_posterior_covariance(oracle: GaussianOracle, level: Level) -> None:
    """D1: sigma^2 S S_t^-1 = S - alpha^2 S S_t^-1 S."""
    got = oracle.covariance(x_of(oracle, 0, 1), level)[0]
    S = oracle.matrix
    want = S - level.alpha**2 * S @ torch.linalg.solve(marginal(oracle, level), S)
    size = max(1.0, float(S.abs().max()))
    torch.testing.assert_close(got / size, want / size, rtol=1e-6, atol=1e-8)


@given(gaussians(), levels())
def test_least_losses(oracle: GaussianOracle, level: Level) -> None:
    """D3."""
    s, snr = oracle.variances, float(level.snr)
    torch.testing.assert_close(oracle.mmse(level), float((s / (1 + s * snr)).sum()), rtol=1e-9, atol=1e-12)
    trace = float(torch.linalg.inv(marginal(oracle, level)).trace())
    want = oracle.dimensions / level.sigma**2 - trace
    score = fixtures.Row("score", lambda at: (0.0, -1.0 / at.sigma))
    got = oracle.minimum_loss(score, level)
    assert got == pytest.approx(want, rel=1e-6, abs=1e-6 * oracle.dimensions / level.sigma**2)
    eps = oracle.minimum_loss(fixtures.EPS, level)
    assert eps == pytest.approx(float((s * snr / (1 + s * snr)).sum()), rel=1e-9)


@pytest.mark.parametrize("p", fixtures.ROWS, ids=lambda p: p.title)
def test_minimum_loss_is_finite_at_both_ends(p: Parameterization) -> None:
    oracle = fixtures.gaussian()
    for level in (Level(1.0, 0.0), Level(0.0, 1.0)):
        assert math.isfinite(oracle.minimum_loss(p, level))
    assert oracle.minimum_loss(fixtures.X0, Level(0.0, 1.0)) == pytest.approx(float(oracle.variances.sum()))
    assert oracle.minimum_loss(fixtures.EPS, Level(1.0, 0.0)) == pytest.approx(2.0)


@given(gaussians(), levels(), levels(), seeds())
def test_flow(oracle: GaussianOracle, t: Level, s: Level, seed: int) -> None:
    """D4: the law at t becomes the law at s, there and back again."""
    x = x_of(oracle, seed) * float(t.scale)
    y = oracle.flow(x, t, s)
    back = oracle.flow(y, s, t)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8 * float(t.scale))
    eye = torch.eye(oracle.dimensions, dtype=DOUBLE)
    start = level_mean = t.alpha * oracle.mean
    A = (oracle.flow(level_mean + eye, t, s) - oracle.flow(start[None], t, s)).T
    got, want = A @ marginal(oracle, t) @ A.T, marginal(oracle, s)
    size = max(1.0, float(want.abs().max()))
    torch.testing.assert_close(got / size, want / size, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", [fixtures.TRIG, fixtures.RECTIFIED, fixtures.WAVY], ids=lambda s: s.title)
def test_flow_solves_the_ode(schedule: Schedule) -> None:
    """D4: dx/dt = f x - g^2 score / 2, by a central difference."""
    oracle = fixtures.gaussian()
    x = x_of(oracle, 1)
    t, h = 0.4, 1e-5
    at = schedule.level(t)
    slope = (oracle.flow(x, at, schedule.level(t + h)) - oracle.flow(x, at, schedule.level(t - h))) / (2 * h)
    f, g2 = sde(schedule, torch.tensor([t], dtype=DOUBLE))
    want = f * x - 0.5 * g2 * oracle.score(x, at)
    torch.testing.assert_close(slope, want, rtol=1e-7, atol=1e-7)


@given(gaussians(), levels(), levels())
def test_reverse_kernel(oracle: GaussianOracle, one: Level, two: Level) -> None:
    """B6, D7: the true reverse kernel carries the law at t to the law at s, by the gain and the variance told."""
    t, s = (one, two) if one.angle > two.angle else (two, one)
    if t.angle == s.angle:
        return
    kernel = posterior_kernel(oracle, t, s)
    law = kernel.push(Normal(t.alpha * oracle.mean, marginal(oracle, t)))
    size = max(1.0, float(marginal(oracle, s).abs().max()))
    torch.testing.assert_close(law.mean, s.alpha * oracle.mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(law.covariance / size, marginal(oracle, s) / size, rtol=1e-6, atol=1e-6)
    first = first_order(oracle, t, s, float(transition.posterior(t, s)))
    torch.testing.assert_close(first.A / size, kernel.A / size, rtol=1e-6, atol=1e-6)


def test_which_variance_is_optimal() -> None:
    """D7: V_s beta / V_t is beta for unit variance, beta tilde for none, strictly between for 0 < s < 1."""
    t, s = fixtures.TRIG.level(0.6), fixtures.TRIG.level(0.5)
    beta, tilde = float(transition.spread(t, s)) ** 2, float(transition.posterior(t, s)) ** 2
    variances = [float(posterior_kernel(GaussianOracle(torch.zeros(1), v), t, s).Q) for v in (1.0, 0.5, 0.0, 2.0)]
    assert variances[0] == pytest.approx(beta, abs=1e-13)
    assert variances[2] == pytest.approx(tilde, abs=1e-13)
    assert tilde < variances[1] < beta < variances[3]


@given(gaussians(), levels())
def test_entropy_and_density(oracle: GaussianOracle, level: Level) -> None:
    covariance = marginal(oracle, level)
    d = oracle.dimensions
    want = 0.5 * (d * math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(covariance)[1]))
    assert oracle.entropy(level) == pytest.approx(want, rel=1e-7, abs=1e-6)
    law = torch.distributions.MultivariateNormal(level.alpha * oracle.mean, covariance)
    x = law.sample((3,))
    torch.testing.assert_close(oracle.log_density(x, level), law.log_prob(x), rtol=1e-6, atol=1e-5)


def test_continuous_bound() -> None:
    """D12, D13: half the integral of the mmse over the snr is the mutual information."""
    oracle = fixtures.gaussian()
    g = torch.linspace(-12.0, 12.0, 4001, dtype=DOUBLE)
    mmse = torch.tensor([oracle.mmse(Level(math.exp(u / 2), 1.0)) * math.exp(u) for u in g.tolist()], dtype=DOUBLE)
    got = 0.5 * float(torch.trapezoid(mmse, g))
    ends = (oracle.variances * math.exp(v) for v in (12.0, -12.0))
    high, low = (float(torch.log1p(v).sum()) for v in ends)
    assert got == pytest.approx(0.5 * (high - low), rel=1e-6)


def test_sde_family_keeps_the_marginals() -> None:
    """D15: drift f x - (1 + eta^2) / 2 g^2 score with noise eta g keeps mean and variance, for every eta."""
    m, v = 0.4, 0.3
    oracle = GaussianOracle(torch.tensor([m], dtype=DOUBLE), v)
    schedule = fixtures.TRIG
    for eta in (0.0, 0.7, 1.0):
        for t in (0.2, 0.5, 0.8):
            level, h = schedule.level(t), 1e-6
            f, g2 = (float(c) for c in sde(schedule, torch.tensor([t], dtype=DOUBLE)))
            mean, V = level.alpha * m, level.alpha**2 * v + level.sigma**2
            score_slope = -1.0 / V
            drift = f * mean - (1 + eta**2) / 2 * g2 * float(oracle.score(torch.tensor([[mean]], dtype=DOUBLE), level))
            after, before = schedule.level(t + h), schedule.level(t - h)
            assert drift == pytest.approx((after.alpha - before.alpha) * m / (2 * h), abs=1e-6)
            rate = 2 * (f - (1 + eta**2) / 2 * g2 * score_slope) * V - eta**2 * g2
            V_after, V_before = (at.alpha**2 * v + at.sigma**2 for at in (after, before))
            assert rate == pytest.approx((V_after - V_before) / (2 * h), abs=1e-6)


def test_shapes_and_types() -> None:
    """Any data shape, float32 and bfloat16, levels as floats, (B,) and one for each pixel."""
    scalar = GaussianOracle(0.3, 0.25)
    x = torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    level = Level(0.6, 0.8)
    want = scalar(x, level)
    for shape in ((2,), (2, 1, 1, 1), (2, 1, 4, 4)):
        many = Level(torch.full(shape, 0.6, dtype=DOUBLE), torch.full(shape, 0.8, dtype=DOUBLE))
        torch.testing.assert_close(scalar(x, many).x0, want.x0)
        torch.testing.assert_close(scalar(x, many).eps, want.eps)
    assert scalar(x.float(), level).x0.dtype == torch.float32
    assert scalar(x.bfloat16(), level).eps.dtype == torch.bfloat16
    diagonal = GaussianOracle(torch.full((3, 4, 4), 0.3), torch.full((3, 4, 4), 0.25))
    whole = GaussianOracle(torch.full((3, 4, 4), 0.3), 0.25 * torch.eye(48))
    for other in (diagonal, whole):
        torch.testing.assert_close(other(x, level).x0, want.x0, rtol=1e-6, atol=1e-6)
        assert other.sample(5).shape == (5, 3, 4, 4)
    with pytest.raises(ValueError, match="dimensions"):
        whole(torch.zeros(2, 47), level)


def test_ends_are_stable() -> None:
    """alpha = 0, sigma = 0 and data that is one point."""
    oracle, x = fixtures.gaussian(), torch.randn(3, 2, dtype=DOUBLE)
    torch.testing.assert_close(oracle(x, Level(0.0, 2.0)).x0, oracle.mean.expand(3, 2))
    torch.testing.assert_close(oracle(x, Level(0.0, 2.0)).eps, x / 2.0)
    torch.testing.assert_close(oracle(x, Level(2.0, 0.0)).x0, x / 2.0)
    point = PointMassOracle(torch.tensor([0.7, -0.4], dtype=DOUBLE))
    for level in (Level(1.0, 0.0), Level(1.0, 1e-9), Level(0.0, 1.0)):
        assert torch.isfinite(point(x, level).eps).all()
        torch.testing.assert_close(point(x, level).x0, point.mean.expand(3, 2))
    with pytest.raises(LevelError):
        oracle.score(x, Level(1.0, 0.0))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.2, 1.0]]), "symmetric"),
        (torch.zeros(2), torch.tensor([1.0, -0.1]), "negative"),
        (torch.zeros(3), torch.tensor([1.0, 2.0]), "does not fit"),
    ],
)
def test_what_is_no_gaussian_is_refused(mean: Tensor, covariance: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianOracle(mean, covariance)


@given(st.integers(1, 3), seeds())
def test_samples_have_the_moments(d: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=source, dtype=DOUBLE)
    oracle = GaussianOracle(torch.arange(d).double(), root @ root.T)
    x = oracle.sample(20000, source)
    size = max(1.0, float(oracle.matrix.abs().max()))
    assert float((x.mean(0) - oracle.mean).abs().max()) < 0.06 * math.sqrt(size)
    assert float((torch.cov(x.T).reshape(d, d) - oracle.matrix).abs().max()) < 0.1 * size
