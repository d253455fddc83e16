"""Schedulers of diffusers on our levels: equal to diffusers on its times, equal to our samplers, pure and counted."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.sampler import SCHEDULERS, Diffusers
from torch import Tensor

from diffkit import Level, LevelError, RecipeError, SampleNoise, build, sample
from diffkit.testing import GaussianOracle, MixtureOracle

F64 = torch.float64
MIXTURE = MixtureOracle([0.4, 0.6], torch.tensor([[-0.9], [0.7]], dtype=F64), [0.09, 0.2])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)
LINEAR = build("schedule", "linear")


def grid(n: int, name: str = "trailing") -> list[Level]:
    levels: list[Level] = build("grid", name).levels(LINEAR, n)
    return levels


def fixed(count: int) -> list[Tensor]:
    return list(torch.randn(count, *X.shape, dtype=F64, generator=torch.Generator().manual_seed(3)))


def draw(scheduler: str, levels: list[Level], noises: list[Tensor], **options: Any) -> Tensor:
    one = iter(noises)
    return sample(MIXTURE, Diffusers(scheduler, **options), levels, X, noise=lambda x: next(one))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "scheduler", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_on_diffusers_own_times_it_is_diffusers(scheduler: str) -> None:
    """With trailing spacing and n dividing T both visit the same levels; diffusers alone, on its 1000-step table."""
    n = 20
    reference = getattr(diffusers, scheduler)(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    reference.set_timesteps(n)
    levels = grid(n)
    exploding = scheduler == "EulerDiscreteScheduler"
    x = X * (1.0 / float(levels[0].alpha) if exploding else 1.0)
    for index in reference.timesteps:
        level = LINEAR.level(float(index) + 1)
        level = Level(1.0, level.sigma / level.alpha) if exploding else level
        x = reference.step(MIXTURE(x, level).eps, index, x).prev_sample
    torch.testing.assert_close(draw(scheduler, levels, []), x, rtol=2e-3, atol=2e-3)  # its table is a float32 product


@pytest.mark.parametrize("name", ["trailing", "linspace", "quadratic"])
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_ddim_and_ddpm_are_our_samplers(name: str, n: int) -> None:
    """Pains 1: on any grid, as the scheduler walks from each level to the next one that is visited."""
    levels = grid(n, name)
    ddim = sample(MIXTURE, build("sampler", "ddim"), levels, X) if _has("ddim") else _plain(levels)
    torch.testing.assert_close(draw("DDIMScheduler", levels, []), ddim, rtol=1e-9, atol=1e-9)
    ours = iter(fixed(n))
    small = sample(MIXTURE, build("sampler", "ancestral", variance="small"), levels, X, noise=lambda x: next(ours))
    torch.testing.assert_close(draw("DDPMScheduler", levels, fixed(n)), small, rtol=1e-7, atol=1e-7)
    again = iter(fixed(n))
    large = sample(MIXTURE, build("sampler", "ancestral", variance="large"), levels, X, noise=lambda x: next(again))
    options = {"variance_type": "fixed_large"}
    torch.testing.assert_close(draw("DDPMScheduler", levels, fixed(n), options=options), large, rtol=1e-7, atol=1e-7)


def _has(name: str) -> bool:
    from diffkit.host import registry

    return registry().has("sampler", name)


def _plain(levels: list[Level]) -> Tensor:
    """DDIM by its definition."""
    x = X
    for t, s in pairwise(levels):
        x = MIXTURE(x, t).step_to(s)
    return x


def test_eta_scales_the_noise_of_ddim() -> None:
    levels = grid(9)
    one = draw("DDIMScheduler", levels, fixed(9), eta=1.0)
    torch.testing.assert_close(one, draw("DDPMScheduler", levels, fixed(9)), rtol=1e-7, atol=1e-7)
    assert (draw("DDIMScheduler", levels, fixed(9), eta=0.5) - one).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_solves_the_mixture(scheduler: str) -> None:
    """On levels of three scales: preserving, exploding, straight; samples of the exact law have its moments."""
    levels = grid(40)
    start = torch.randn(2000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    results = []
    for size in (lambda v: 1.0, lambda v: 1.0 / float(v.alpha), lambda v: 1.0 / (float(v.alpha) + float(v.sigma))):
        there = [Level(float(v.alpha) * size(v), float(v.sigma) * size(v)) for v in levels]
        noise = SampleNoise(0, range(len(start)))
        x = sample(MIXTURE, Diffusers(scheduler), there, start * size(levels[0]), noise=noise)  # type: ignore[arg-type]
        results.append(x / there[-1].alpha)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)
    mean, spread = 0.4 * -0.9 + 0.6 * 0.7, math.sqrt(0.4 * (0.81 + 0.09) + 0.6 * (0.49 + 0.2) - 0.06**2)
    assert results[0].mean().item() == pytest.approx(mean, abs=0.06)
    assert results[0].std().item() == pytest.approx(spread, abs=0.07)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_evaluations_are_counted_and_runs_do_not_mix(scheduler: str) -> None:
    """Pains 18: two runs of one sampler, step by step in turn; and nfe(n) is what n steps cost."""
    sampler = Diffusers(scheduler)  # type: ignore[arg-type]
    for n in (1, 2, 5):
        calls: list[int] = []
        sample(MIXTURE, sampler, grid(n), X, on_step=lambda p, calls=calls: calls.append(p.nfe))  # type: ignore[misc]
        assert calls[-1] == sampler.nfe(n)
    levels = (grid(6), grid(6, "quadratic"))
    alone = [sample(MIXTURE, sampler, one, X, noise=torch.ones_like) for one in levels]
    states, now = [sampler.init(one) for one in levels], [X, X]
    with torch.no_grad():
        for step in range(6):
            for i in range(2):
                t, s = levels[i][step : step + 2]
                sampler.step(MIXTURE, now[i] + 1.0, t, s, states[i], torch.ones_like)  # a step that is thrown away
                now[i], states[i] = sampler.step(MIXTURE, now[i], t, s, states[i], torch.ones_like)
    for i in range(2):
        torch.testing.assert_close(now[i], alone[i], rtol=0, atol=0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_noise_is_drawn_from_ours_only(scheduler: str) -> None:
    before = torch.random.get_rng_state()
    sampler, drawn = Diffusers(scheduler), []  # type: ignore[arg-type]

    def noise(x: Tensor) -> Tensor:
        drawn.append(x)
        return torch.zeros_like(x)

    sample(MIXTURE, sampler, grid(4), X, noise=noise)
    assert bool(drawn) == sampler.stochastic
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_point_is_found_and_a_noisy_end_is_reached(scheduler: str) -> None:
    """Identity F2; and where the grid ends on a level with noise, the sample has its moments."""
    point = GaussianOracle(torch.tensor([0.7], dtype=F64), 0.0)
    sampler = Diffusers(scheduler)  # type: ignore[arg-type]
    for n in (1, 2, 3):
        x = sample(point, sampler, grid(n), X, noise=torch.zeros_like)
        torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=5e-5, atol=5e-5)
    levels = [LINEAR.level(float(t)) for t in (900, 600, 300)]
    if not sampler.stochastic:
        x = sample(point, sampler, levels, levels[0].add_noise(torch.full_like(X, 0.7), X))
        torch.testing.assert_close(x, levels[-1].add_noise(torch.full_like(X, 0.7), X), rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"use_karras_sigmas": True}}, "use_karras_sigmas"),
        ({"options": {"trained_betas": 1}}, "trained_betas"),
        ({"options": {"prediction_type": "sample"}}, "prediction_type"),
        ({"options": {"algorithm_type": "dpmsolver"}}, "dpmsolver"),
        ({"options": {"solver_type": "nonsense"}}, "nonsense"),
        ({"eta": 0.5}, "eta"),
        ({"scheduler": "DDPMScheduler", "options": {"variance_type": "learned_range"}}, "learned"),
        ({"scheduler": "KDPM2DiscreteScheduler"}, "scheduler"),
        ({"scheduler": "os.system"}, "scheduler"),
    ],
)
def test_what_chooses_levels_or_is_not_listed_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        build("sampler", "diffusers", **{"scheduler": "DPMSolverMultistepScheduler", **options})


def test_options_reach_the_scheduler() -> None:
    levels = grid(6)
    second = draw("DPMSolverMultistepScheduler", levels, [])
    sampler = build("sampler", "diffusers", scheduler="DPMSolverMultistepScheduler", options={"solver_order": 3})
    assert sampler.order == 3
    assert (sample(MIXTURE, sampler, levels, X) - second).abs().max() > 1e-4
    sde = Diffusers("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})
    assert sde.stochastic
    clipped = draw("DDIMScheduler", levels, [], options={"clip_sample": True, "clip_sample_range": 0.5})
    assert clipped.abs().max() <= 0.5 + 1e-6


def test_alpha_zero_is_refused() -> None:
    with pytest.raises(LevelError, match="alpha = 0"):
        Diffusers("DDIMScheduler").init([Level(0.0, 1.0), Level(1.0, 0.0)])


def test_a_diffusers_that_walks_other_levels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: Any, n: int, device: Any = None) -> None:
        self.timesteps = torch.arange(n)
        self.sigmas = torch.linspace(5.0, 0.0, n + 1)

    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "set_timesteps", elsewhere)
    with pytest.raises(ValueError, match="cannot use given levels"):
        Diffusers("EulerDiscreteScheduler")
