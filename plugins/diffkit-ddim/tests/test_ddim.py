"""DDIM against its paper, its other names, and diffusers where diffusers is right."""

from __future__ import annotations

import math

import pytest
import torch
from diffkit_ddim.inversion import decode, encode, slerp
from diffkit_ddim.sampler import DDIM
from torch import Tensor

from diffkit import Estimate, Level, LevelError, sample, transition
from diffkit.basics.grid import Leading, Linspace, Trailing
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear
from diffkit.testing import GaussianOracle, MixtureOracle

F64 = torch.float64
GAUSSIAN = GaussianOracle(torch.tensor([0.3], dtype=F64), 0.49)
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)


def noises(count: int) -> list[Tensor]:
    return list(torch.randn(count, *X.shape, dtype=F64, generator=torch.Generator().manual_seed(3)))


def test_a_step_is_equation_12() -> None:
    t, s, eta, z = Linear().level(600.0), Linear().level(400.0), 0.7, noises(1)[0]
    known = GAUSSIAN(X, t)
    ab_t, ab_s = t.alpha**2, s.alpha**2
    sigma = eta * math.sqrt((1 - ab_s) / (1 - ab_t)) * math.sqrt(1 - ab_t / ab_s)
    expected = math.sqrt(ab_s) * known.x0 + math.sqrt(1 - ab_s - sigma**2) * known.eps + sigma * z
    found, _ = DDIM(eta).step(GAUSSIAN, X, t, s, None, lambda x: z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_eta_one_is_the_ancestral_sampler() -> None:
    """Identity F3: the same step under two names, on the full grid."""
    levels = Linspace().levels(Linear(), 1000)
    a, b = iter(noises(1000)), iter(noises(1000))
    one = sample(GAUSSIAN, DDIM(1.0), levels, X, noise=lambda x: next(a))
    two = sample(GAUSSIAN, Ancestral("small"), levels, X, noise=lambda x: next(b))
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_eta_may_exceed_one_until_the_noise_does_not_fit() -> None:
    """Identity B3: eta up to 1 / sqrt(1 - snr_t / snr_s) keeps the marginals."""
    t, s = Linear().level(600.0), Linear().level(590.0)
    most = float(s.sigma / transition.posterior(t, s))
    assert most > 1
    DDIM(0.99 * most).step(GAUSSIAN, X, t, s, None, torch.randn_like)
    with pytest.raises(LevelError, match="standard deviation"):
        DDIM(1.01 * most).step(GAUSSIAN, X, t, s, None, torch.randn_like)


def test_the_deterministic_sampler_draws_nothing() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("eta = 0 drew noise")

    sample(GAUSSIAN, DDIM(), Trailing().levels(Linear(), 7), X, noise=never)
    assert not DDIM().stochastic
    assert DDIM(0.1).stochastic


@pytest.mark.parametrize("n", [5, 10, 50, 100])
def test_diffusers_agrees_where_its_next_time_is_the_next_point(n: int) -> None:
    """Pains 1: with leading spacing and n dividing T, diffusers steps to the point that it visits next."""
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="leading", set_alpha_to_one=True
    )
    reference.set_timesteps(n)
    x = X.clone()
    for index in reference.timesteps:
        t = Linear().level(float(index) + 1)
        x = reference.step(GAUSSIAN(x, t).eps, int(index), x).prev_sample
    ours = sample(GAUSSIAN, DDIM(), Leading().levels(Linear(), n), X)
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)  # its tables are float32


def test_diffusers_600_steps_miss_the_closed_form_and_ours_do_not() -> None:
    """Pains 1 and 3b: at n = 600 diffusers steps to t - 1 on a grid of stride 5/3; the deviation is off by a third."""
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="linspace", set_alpha_to_one=True
    )
    reference.set_timesteps(600)
    centred = GaussianOracle(torch.zeros(1, dtype=F64), 0.25)
    x = torch.ones(1, 1, dtype=F64)
    for index in reference.timesteps:
        x = reference.step(centred(x, Linear().level(float(index) + 1)).eps, int(index), x).prev_sample
    ours = sample(centred, DDIM(), Linspace().levels(Linear(), 600), torch.ones(1, 1, dtype=F64))
    assert x.item() / 0.5 == pytest.approx(1.317, abs=0.02)
    assert ours.item() / 0.5 == pytest.approx(1.0, abs=0.01)


def test_encoding_and_decoding_is_a_round_trip() -> None:
    oracle = MixtureOracle([0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.04, 0.09])
    levels = Trailing().levels(Linear(), 200)
    x0 = torch.tensor([[-1.1], [-0.9], [0.8], [1.3]], dtype=F64)
    plain = (decode(oracle, levels, encode(oracle, levels, x0)) - x0).abs().max()
    refined = (decode(oracle, levels, encode(oracle, levels, x0, rounds=6)) - x0).abs().max()
    assert plain < 0.05
    assert refined < plain / 20


def test_the_latent_is_that_of_the_exact_flow() -> None:
    levels = Trailing().levels(Linear(), 1000)[:-1]
    x = torch.tensor([[0.0], [0.9]], dtype=F64)
    exact = GAUSSIAN.flow(x, levels[-1], levels[0])
    torch.testing.assert_close(encode(GAUSSIAN, levels, x), exact, rtol=5e-3, atol=5e-3)


def test_slerp_keeps_the_norm_and_the_ends() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    path = slerp(a, b, [0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(path.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(path[[0, -1]], torch.cat([a, b]))
    torch.testing.assert_close(path[2], torch.full((2,), math.sqrt(0.5)))
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_one_evaluation_per_step() -> None:
    calls = 0

    def count(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return GAUSSIAN(x, level)

    sample(count, DDIM(), Trailing().levels(Linear(), 13), X)
    assert calls == DDIM().nfe(13) == 13
