"""The same step under other names, on other curves, and in other code bases."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_dpmsolver.multistep import DPMpp2M, DPMpp3M
from diffkit_dpmsolver.singlestep import DPMpp2S
from diffkit_dpmsolver.unipc import UniPC
from torch import Tensor

from diffkit import Level, LevelError, Sampler, sample, transition
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear
from diffkit.testing import GaussianOracle, MixtureOracle, PolynomialOracle
from diffkit.testing.order import logsnr_levels

F64 = torch.float64
MIXTURE = MixtureOracle([0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.04, 0.09])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "k-diffusion.json").read_text())
SAMPLERS = [DPMpp2M(), DPMpp2M("heun", 0.5), DPMpp3M(), DPMpp3M(True, 1.0), DPMpp2S(), UniPC(2, "bh1"), UniPC(3)]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("dpmpp-2m", DPMpp2M()),
        ("dpmpp-2s", DPMpp2S()),
        ("dpmpp-2m-sde-midpoint", DPMpp2M(eta=1.0)),
        ("dpmpp-2m-sde-heun", DPMpp2M("heun", eta=1.0)),
        ("dpmpp-3m-published", DPMpp3M(published=True)),
        ("dpmpp-3m-published-sde", DPMpp3M(published=True, eta=1.0)),
    ],
)
def test_k_diffusion(name: str, sampler: Sampler) -> None:
    oracle = GaussianOracle(torch.tensor([GOLDEN["mean"]], dtype=F64), GOLDEN["variance"])
    levels = [Level(1.0, sigma) for sigma in GOLDEN["sigmas"]]
    x, z = (torch.tensor(GOLDEN[key], dtype=F64)[:, None] for key in ("start", "noise"))
    got = sample(oracle, sampler, levels, x, noise=lambda x: z)
    want = torch.tensor(GOLDEN["results"][name], dtype=F64)[:, None]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def diffusers_run(scheduler: Any, levels: list[Level], x: Tensor) -> Tensor:
    """A diffusers scheduler of x0 along our levels, variance preserving, given to it as sigma / alpha."""
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.tensor([float(v.sigma) / float(v.alpha) for v in levels], dtype=F64)
    for t, level in zip(scheduler.timesteps, levels):
        x = scheduler.step(MIXTURE(x, level).x0, t, x).prev_sample
    return x


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
@pytest.mark.parametrize("ends_clean", [True, False])
def test_diffusers_2m(variant: str, ends_clean: bool) -> None:
    from diffusers import DPMSolverMultistepScheduler

    end = "zero" if ends_clean else "sigma_min"
    scheduler = DPMSolverMultistepScheduler(
        solver_type=variant, prediction_type="sample", final_sigmas_type=end, lower_order_final=ends_clean
    )
    levels = [*logsnr_levels(8), Level(1.0, 0.0)] if ends_clean else logsnr_levels(8)
    ours = sample(MIXTURE, DPMpp2M(variant), levels, X)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, diffusers_run(scheduler, levels, X).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
def test_diffusers_unipc(order: int, variant: str, corrector: bool) -> None:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        prediction_type="sample",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
        disable_corrector=[] if corrector else list(range(20)),
    )
    levels = logsnr_levels(9)
    ours = sample(MIXTURE, UniPC(order, variant, corrector), levels, X)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, diffusers_run(scheduler, levels, X), rtol=1e-9, atol=1e-9)


def test_defect_diffusers_bh1_is_nan_at_its_default_end() -> None:
    """Table K "NaN paths": B = h is infinite in the step to clean data."""
    from diffusers import UniPCMultistepScheduler

    levels = [*logsnr_levels(8), Level(1.0, 0.0)]
    theirs = diffusers_run(UniPCMultistepScheduler(solver_type="bh1", prediction_type="sample"), levels, X)
    assert theirs.isnan().all()
    assert sample(MIXTURE, UniPC(2, "bh1"), levels, X).isfinite().all()


def test_defect_diffusers_third_order_is_of_second() -> None:
    """Table K "third order": step by step diffusers is the published coefficient, which a parabola in half_logsnr
    shows to be wrong by half of its quadratic term; with the factor 2 the step is exact."""
    from diffusers import DPMSolverMultistepScheduler

    levels, oracle = logsnr_levels(6), PolynomialOracle([0.0, 0.0, 1.0])
    scheduler = DPMSolverMultistepScheduler(
        solver_order=3, prediction_type="sample", final_sigmas_type="sigma_min", lower_order_final=False
    )
    scheduler.set_timesteps(6)
    scheduler.sigmas = torch.tensor([float(v.sigma) / float(v.alpha) for v in levels], dtype=F64)
    theirs, x, published, correct = [X], X, None, None
    for t, level in zip(scheduler.timesteps, levels):
        x = scheduler.step(oracle(x, level).x0, t, x).prev_sample.double()
        theirs.append(x)
    for i, (t, s) in enumerate(pairwise(levels)):
        ours, published = DPMpp3M(published=True).step(oracle, theirs[i], t, s, published, torch.zeros_like)
        right, correct = DPMpp3M().step(oracle, theirs[i], t, s, correct, torch.zeros_like)
        if i >= 2:
            torch.testing.assert_close(theirs[i + 1], ours, rtol=1e-5, atol=1e-5)
            assert (theirs[i + 1] - right).abs().min() > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_rescaling_the_curve_changes_nothing(sampler: Sampler) -> None:
    """Identity A8: x / alpha is the same on every curve through the same signal-to-noise ratios."""
    levels = [*logsnr_levels(6), Level(1.0, 0.0)]
    scales = [2.0, 0.3, 1.7, 1.0, 0.6, 3.0, 0.9, 1.4]
    other = [Level(v.alpha * c, v.sigma * c) for v, c in zip(levels, scales)]
    z = iter([torch.full_like(X, 0.1 * k) for k in range(14)])
    y = iter([torch.full_like(X, 0.1 * k) for k in range(14)])
    one = sample(MIXTURE, sampler, levels, X, noise=lambda x: next(z))
    two = sample(MIXTURE, sampler, other, X * scales[0], noise=lambda x: next(y))
    torch.testing.assert_close(two, one * scales[-1], rtol=1e-11, atol=1e-11)


def test_the_first_step_with_eta_one_is_ancestral() -> None:
    """Identity F3: SDE-DPM-Solver++(1) is the ancestral sampler with the small variance."""
    t, s = Linear().level(600.0), Linear().level(500.0)
    want, _ = Ancestral("small").step(MIXTURE, X, t, s, None, torch.ones_like)
    for sampler in (DPMpp2M(eta=1.0), DPMpp3M(eta=1.0)):
        got, _ = sampler.step(MIXTURE, X, t, s, None, torch.ones_like)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_eta_scales_the_standard_deviation(eta: float) -> None:
    """Identity F9: the noise is eta sigma_s sqrt(1 - exp(-2h)), as in DDIM."""
    levels = logsnr_levels(3)
    for sampler in (DPMpp2M(eta=eta), DPMpp3M(eta=eta)):
        state = None
        for t, s in pairwise(levels):
            quiet, _ = sampler.step(MIXTURE, X, t, s, state, torch.zeros_like)
            loud, state = sampler.step(MIXTURE, X, t, s, state, torch.ones_like)
            std = eta * float(s.sigma) * math.sqrt(-math.expm1(-2 * float(transition.step(t, s))))
            torch.testing.assert_close(loud - quiet, torch.full_like(X, std), rtol=1e-12, atol=1e-12)
        assert sampler.stochastic == (eta > 0)


def test_eta_beyond_what_keeps_the_marginal_is_refused() -> None:
    levels = logsnr_levels(3)
    with pytest.raises(LevelError, match="adds less noise"):
        sample(MIXTURE, DPMpp2M(eta=3.0), levels, X)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_sampler_keeps_nothing_between_runs(sampler: Sampler) -> None:
    """Pains 18: what a later step needs is in the state alone, so that two runs may interleave."""
    levels = [*logsnr_levels(5), Level(1.0, 0.0)]
    want = sample(MIXTURE, sampler, levels, X, noise=torch.ones_like)
    xs, states = [X, X], [sampler.init(levels), sampler.init(levels)]
    for t, s in pairwise(levels):
        for k in range(2):
            xs[k], states[k] = sampler.step(MIXTURE, xs[k], t, s, states[k], torch.ones_like)
    torch.testing.assert_close(xs[0], want, rtol=0, atol=0)
    torch.testing.assert_close(xs[1], want, rtol=0, atol=0)
