"""Euler and Heun in charts, and churn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffkit_edm.grid import Karras
from diffkit_edm.sampler import ChartName, Euler, Heun
from diffkit_edm.schedule import EDM
from torch import Tensor

from diffkit import Estimate, Level, LevelError, Sampler, StepInfo, sample
from diffkit.ddpm.schedule import Linear
from diffkit.testing import GaussianOracle, MixtureOracle, PointMassOracle
from diffkit.testing.order import logsnr_levels, measure

F64 = torch.float64
GOLDEN = json.loads((Path(__file__).parent / "golden" / "edm.json").read_text())
GAUSSIAN = GaussianOracle(torch.tensor([GOLDEN["mean"]], dtype=F64), GOLDEN["variance"])
MIXTURE = MixtureOracle([0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.04, 0.09])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)
CHARTS: list[ChartName] = ["sigma", "flow", "angle"]
CLEAN = Level(1.0, 0.0)


@pytest.mark.parametrize("name", GOLDEN["results"])
def test_the_authors_sampler(name: str) -> None:
    """Algorithm 2 with its grid, with and without churn, number for number."""
    run = GOLDEN["results"][name]
    given = dict(run["options"])
    n = given.pop("num_steps")
    churn = {f"s_{key[2:]}": given.pop(key) for key in list(given) if key.startswith("S_")}
    schedule = EDM(given.get("sigma_min", 0.002), given.get("sigma_max", 80.0))
    levels = Karras(given.get("rho", 7.0)).levels(schedule, n)
    x, z = (torch.tensor(GOLDEN[key], dtype=F64)[:, None] for key in ("start", "noise"))
    got = sample(GAUSSIAN, Heun(**churn), levels, float(levels[0].sigma) * x, noise=lambda x: z)
    torch.testing.assert_close(got[:, 0], torch.tensor(run["x"], dtype=F64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chart", CHARTS)
def test_measured_order(chart: ChartName) -> None:
    """Identity F1, in every chart."""
    assert measure(Euler(chart), (80, 160, 320)).slope == pytest.approx(1.0, abs=0.1)
    assert measure(Heun(chart), (40, 80, 160)).slope == pytest.approx(2.0, abs=0.15)


def test_euler_is_ddim_in_two_charts_and_not_in_the_third() -> None:
    """Identity A8b: Euler is DDIM where alpha and sigma are affine in the clock, and only there."""
    t, s = Linear().level(700.0), Linear().level(400.0)
    ddim = MIXTURE(X, t).step_to(s)
    steps = {chart: Euler(chart).step(MIXTURE, X, t, s, None, torch.zeros_like)[0] for chart in CHARTS}
    torch.testing.assert_close(steps["sigma"], ddim, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(steps["flow"], ddim, rtol=1e-12, atol=1e-12)
    assert (steps["angle"] - ddim).abs().max() > 1e-3


def test_heun_differs_between_charts() -> None:
    levels = logsnr_levels(4)
    results = [sample(MIXTURE, Heun(chart), levels, X) for chart in CHARTS]
    assert (results[0] - results[1]).abs().max() > 1e-4
    assert (results[0] - results[2]).abs().max() > 1e-4


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_point_mass_is_reached_exactly(n: int) -> None:
    """Identity F2, pains 19: Heun in sigma and in flow are exact, at either kind of end."""
    oracle = PointMassOracle(torch.tensor([0.7], dtype=F64))
    for chart in ("sigma", "flow"):
        for last in (CLEAN, Linear().level(1.0)):
            levels = [*[Linear().level(t) for t in (1000.0, 700.0, 400.0, 100.0, 20.0)[:n]], last]
            t = levels[0]
            want = last.alpha * 0.7 + last.sigma * (X - t.alpha * 0.7) / t.sigma
            torch.testing.assert_close(sample(oracle, Heun(chart), levels, X), want, rtol=1e-8, atol=1e-8)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [Euler(), Heun(), Heun("flow"), Heun("angle"), Heun(s_churn=1.0)], ids=repr)
def test_rescaling_the_curve_changes_nothing(sampler: Sampler) -> None:
    """Identity A8: x / alpha is the same on every curve, with churn too."""
    levels, scales = [*logsnr_levels(5), CLEAN], [2.0, 0.3, 1.7, 1.0, 0.6, 3.0, 0.9]
    other = [Level(v.alpha * c, v.sigma * c) for v, c in zip(levels, scales)]
    one = sample(MIXTURE, sampler, levels, X, noise=torch.ones_like)
    two = sample(MIXTURE, sampler, other, X * scales[0], noise=torch.ones_like)
    torch.testing.assert_close(two, one * scales[-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chart", ["flow", "angle"])
def test_charts_that_start_at_pure_noise(chart: ChartName) -> None:
    levels = [Level(0.0, 1.0), *logsnr_levels(30), CLEAN]
    x = torch.randn(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    got = sample(GAUSSIAN, Heun(chart), levels, x)
    assert got.mean().item() == pytest.approx(GOLDEN["mean"], abs=0.05)
    assert got.std().item() == pytest.approx(math.sqrt(GOLDEN["variance"]), abs=0.05)
    assert Heun(chart).reaches_noise


def test_the_chart_sigma_refuses_pure_noise() -> None:
    assert not Heun().reaches_noise
    for sampler in (Heun(), Euler()):
        with pytest.raises(LevelError, match="chart angle or flow"):
            sample(GAUSSIAN, sampler, [Level(0.0, 1.0), CLEAN], X)


def churned(sampler: Euler, t: Level, levels: list[Level]) -> tuple[Tensor, Level]:
    """The arguments of the denoiser in one step: x and level."""
    calls: list[tuple[Tensor, Level]] = []

    def denoise(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        calls.append((x, level))
        return GAUSSIAN(x, level)

    sampler.step(denoise, X, t, CLEAN, sampler.init(levels), torch.ones_like)
    return calls[0]


@pytest.mark.parametrize("t", [Level(1.0, 2.0), Linear().level(500.0), Level(0.4, 0.6)], ids=str)
def test_churn_lands_on_the_law_of_the_raised_level(t: Level) -> None:
    """Identity F7, on any curve: alpha stays, the variance grows by sigma_hat^2 - sigma^2."""
    levels = [Level(t.alpha, 9.0 * t.sigma), *[t] * 9]
    for s_churn, gamma in ((1.8, 0.2), (100.0, math.sqrt(2) - 1)):
        x, level = churned(Euler(s_churn=s_churn), t, levels)
        assert level.alpha == t.alpha
        assert level.sigma == pytest.approx(t.sigma * (1 + gamma))
        added = math.sqrt(float(level.sigma) ** 2 - float(t.sigma) ** 2)
        torch.testing.assert_close(x - X, torch.full_like(X, added), rtol=1e-12, atol=1e-12)
    louder, _ = churned(Euler(s_churn=1.8, s_noise=1.5), t, levels)
    quiet, _ = churned(Euler(s_churn=1.8), t, levels)
    torch.testing.assert_close(louder - X, 1.5 * (quiet - X), rtol=1e-12, atol=1e-12)


def test_churn_keeps_to_its_band_and_below_the_start() -> None:
    """s_min and s_max are in sigma / alpha; beyond the first level no network was trained."""
    t, levels = Level(0.5, 1.0), [Level(0.5, 2.0), *[Level(0.5, 1.0)] * 4]
    assert churned(Euler(s_churn=1.0, s_min=2.5), t, levels)[1] == t
    assert churned(Euler(s_churn=1.0, s_max=1.5), t, levels)[1] == t
    assert churned(Euler(s_churn=1.0, s_min=1.5, s_max=2.5), t, levels)[1].sigma == pytest.approx(1.25)
    assert churned(Euler(s_churn=1.0), Level(0.5, 2.0), levels)[1] == Level(0.5, 2.0)
    assert churned(Euler(s_churn=1.0), Level(0.5, 1.9), levels)[1].sigma == pytest.approx(2.0)


def test_the_churned_law_is_that_of_the_data() -> None:
    """With an exact denoiser churn changes the path and not the law."""
    levels = Karras().levels(EDM(), 80)
    x = 80.0 * torch.randn(20_000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(1)
    noisy = sample(
        GAUSSIAN, Heun(s_churn=10.0), levels, x, noise=lambda x: torch.randn(x.shape, dtype=F64, generator=stream)
    )
    assert noisy.mean().item() == pytest.approx(GOLDEN["mean"], abs=0.02)
    assert noisy.var().item() == pytest.approx(GOLDEN["variance"], abs=0.02)


def test_the_state_is_held_in_float64() -> None:
    """Half of the field's Heun differences are float32 states: rounding grows with sigma."""
    got = sample(GAUSSIAN, Heun(), Karras().levels(EDM(), 8), X.float() * 80)
    assert got.dtype == F64
    assert Euler.dtype == Heun.dtype == F64


def test_evaluations_and_noises() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("no churn, yet noise was drawn")

    for sampler, count in ((Euler(), 9), (Heun(), 17)):
        steps: list[StepInfo] = []
        sample(GAUSSIAN, sampler, Karras().levels(EDM(), 9), X, noise=never, on_step=steps.append)
        assert steps[-1].nfe == count == sampler.nfe(9)
        assert not sampler.stochastic
    assert Euler(s_churn=1.0).stochastic
    assert Heun(s_churn=1.0).stochastic


def test_diffusers_euler() -> None:
    """EDMEulerScheduler in float32, from the same start."""
    from diffusers import EDMEulerScheduler

    reference = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    reference.set_timesteps(12)
    levels = Karras().levels(EDM(), 12)
    torch.testing.assert_close(
        reference.sigmas[:-1].double(),
        torch.tensor([float(v.sigma) for v in levels[:-1]], dtype=F64),
        rtol=1e-5,
        atol=1e-6,
    )
    x = 80.0 * X
    for t, level in zip(reference.timesteps, levels):
        sigma = float(level.sigma)
        clean = GAUSSIAN(x, level).x0
        out = (clean - 0.25 / (sigma**2 + 0.25) * x) * math.sqrt(sigma**2 + 0.25) / (0.5 * sigma)
        x = reference.step(out, t, x).prev_sample.double()
    torch.testing.assert_close(sample(GAUSSIAN, Euler(), levels, 80.0 * X), x, rtol=1e-4, atol=1e-4)
