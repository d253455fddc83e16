"""Gaussian data and a linear measurement: the posterior is known, and samplers reach it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from diffkit_dpmsolver.multistep import DPMpp2M
from diffkit_inverse.laws import KNOWN, MASK, Problem, problem
from diffkit_inverse.methods import DDNM, DPS, PGDM, Known
from diffkit_inverse.operator import Downsample, Mask
from diffkit_inverse.sampler import Blend, RePaint

from diffkit import Level, SampleNoise, build, sample
from diffkit.testing import GaussianOracle, Normal, probe

F64 = torch.float64
EXACT = PGDM(Mask(), covariance="exact", iterations=2)


def levels(n: int, last: float = 0.0) -> list[Level]:
    """n steps, even in the angle, from sigma / alpha = 50 to the angle `last`."""
    first = math.atan(50.0)
    at = [first + (last - first) * i / n for i in range(n + 1)]
    return [Level(math.cos(a), math.sin(a)) if a else Level(1.0, 0.0) for a in at]


def sampled(given: Problem, method: Any, grid: list[Level]) -> tuple[Normal, Normal]:
    """The law of samples that start from the exact law at the first level, and the exact law at the last."""
    target = given.posterior
    exact = [
        Normal(
            float(at.alpha) * target.mean, float(at.alpha) ** 2 * target.matrix + float(at.sigma) ** 2 * torch.eye(3)
        )
        for at in (grid[0], grid[-1])
    ]
    return probe(given.solved(method), DPMpp2M(), grid, 3).push(exact[0]), exact[1]


@pytest.mark.parametrize("noise", [0.5, 0.05])
def test_the_posterior_in_100_steps(noise: float) -> None:
    got, want = sampled(problem(noise=noise), EXACT, levels(100))
    torch.testing.assert_close(got.mean, want.mean, rtol=0.0, atol=1e-2)
    torch.testing.assert_close(got.covariance, want.covariance, rtol=0.0, atol=1e-2)


def test_the_error_falls_by_4_if_the_step_is_halved() -> None:
    errors = []
    for n in (40, 80):
        got, want = sampled(problem(), EXACT, levels(n, last=0.1))
        errors.append(float((got.mean - want.mean).norm() + (got.covariance - want.covariance).norm()))
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=0.2)


def test_pgdm_is_exact_for_unit_covariance_and_not_for_others() -> None:
    isotropic = PGDM(Mask())
    got, want = sampled(problem(unit=True), isotropic, levels(100))
    torch.testing.assert_close(got.covariance, want.covariance, rtol=0.0, atol=1e-2)
    got, want = sampled(problem(), isotropic, levels(100))
    assert (got.mean - want.mean).abs().max() > 0.05


@pytest.mark.parametrize("method", [DDNM(Mask()), PGDM(Mask(), covariance="exact")])
def test_known_pixels_are_exact(method: Any) -> None:
    """In float32, at the end of sampling, without any repair afterwards; values of y in the hole do not count."""
    y, mask = torch.randn(1, 1, 4, 4), (torch.rand(1, 1, 4, 4) > 0.5).float()
    prior = GaussianOracle(torch.zeros(1, 4, 4), 0.5)
    denoise = partial(method(prior), measurement=y, mask=mask)
    x = sample(denoise, build("sampler", "ancestral"), levels(20), torch.randn(2, 1, 4, 4))
    assert float(((x - y) * mask).abs().max()) < 1e-6


@pytest.mark.parametrize("wrap", [Blend, RePaint])
def test_samplers_leave_known_pixels_bitwise_equal(wrap: Any) -> None:
    y, mask = torch.randn(1, 1, 4, 4), (torch.rand(1, 1, 4, 4) > 0.5).float()
    denoise = partial(Known()(GaussianOracle(torch.zeros(1, 4, 4), 0.5)), measurement=y, mask=mask)
    x = sample(denoise, wrap(build("sampler", "ancestral")), levels(8), torch.randn(2, 1, 4, 4))
    kept = (mask > 0.5).expand_as(x)
    assert torch.equal(x[kept], y.expand_as(x)[kept])
    assert x[~kept].std() > 0.1


def test_blend_and_repaint_need_the_mask_and_the_measurement() -> None:
    prior = GaussianOracle(torch.tensor([0.3, -0.2], dtype=F64), 1.0)
    for given in ({"measurement": KNOWN}, {"mask": MASK}):
        x = sample(
            partial(Known()(prior), **given), Blend(build("sampler", "ddim")), levels(5), torch.ones(1, 2, dtype=F64)
        )
        torch.testing.assert_close(x, sample(prior, build("sampler", "ddim"), levels(5), torch.ones(1, 2, dtype=F64)))


def test_a_method_without_a_measurement_warns() -> None:
    prior, level = GaussianOracle(torch.zeros(2), 1.0), Level(0.8, 0.6)
    with pytest.warns(UserWarning, match="measurement=y"):
        estimate = DPS(Mask())(prior)(torch.ones(1, 2), level)
    assert torch.equal(estimate.x0, prior(torch.ones(1, 2), level).x0)


def test_nothing_is_corrected_at_pure_noise() -> None:
    """At alpha = 0, x holds nothing of x0, and a gradient would be divided by 0."""
    prior, x = GaussianOracle(torch.zeros(1, 2, 2), 1.0), torch.randn(3, 1, 2, 2)
    y = torch.ones(1, 1, 1, 1)
    for method in (PGDM(Downsample()), PGDM(Downsample(), covariance="exact"), DPS(Downsample())):
        x0 = method(prior)(x, Level(0.0, 1.0), measurement=y).x0
        assert torch.equal(x0, torch.zeros_like(x))
        assert torch.isfinite(method(prior)(x, Level(1e-6, 1.0), measurement=y).x0).all()


def test_repaint_learns_of_the_known_pixel() -> None:
    """The hole has the mean of p(hole | known) with resampling, and not without."""
    S, m = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64), torch.zeros(2, dtype=F64)
    denoise = partial(Known()(GaussianOracle(m, S)), measurement=torch.tensor([[1.5, 0.0]], dtype=F64), mask=MASK)
    means = []
    for resamples in (1, 10):
        noise = SampleNoise(0, range(512))
        sampler = RePaint(build("sampler", "ancestral"), resamples)
        means.append(
            float(sample(denoise, sampler, levels(25), noise.initial((2,)).double(), noise=noise)[:, 1].mean())
        )
    assert abs(means[1] - 1.2) < 0.1 < abs(means[0] - 1.2)
