"""The score as a prediction, and the weighting of the likelihood."""

from __future__ import annotations

import pytest
import torch
from diffkit_score_sde.parameterization import Score
from diffkit_score_sde.schedule import VE, VP, SubVP
from diffkit_score_sde.weighting import Likelihood

from diffkit import Level, LevelError, Schedule
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.weighting import SNR, VLBWeight
from diffkit.schedule import sde
from diffkit.testing import GaussianOracle
from diffkit.testing.fixtures import zero_terminal

F64 = torch.float64
T = torch.tensor([0.01, 0.2, 0.7, 0.99], dtype=F64)


@pytest.mark.parametrize("curve", [VP(), SubVP(), VE()], ids=["vp", "sub-vp", "ve"])
def test_the_best_network_returns_the_score(curve: Schedule) -> None:
    """Equation 7; identities D1, D2."""
    oracle, level = GaussianOracle(torch.tensor([0.3, -1.0], dtype=F64), 0.4), curve.level(0.4)
    x = torch.randn(5, 2, dtype=F64)
    known = oracle(x, level)
    torch.testing.assert_close(Score().target(known.x0, known.eps, level), oracle.score(x, level))
    again = Score().decode(oracle.score(x, level), x, level)
    torch.testing.assert_close(again.x0, known.x0, rtol=1e-9, atol=1e-9)


def test_snr_weighting_makes_the_loss_that_of_eps() -> None:
    level = VP().level(T)
    torch.testing.assert_close(SNR().on_output(level, Score()), torch.as_tensor(level.sigma) ** 2)
    torch.testing.assert_close(torch.as_tensor(SNR().on_output(level, Eps())), torch.ones(4, dtype=F64))


@pytest.mark.parametrize("sigma", [0.0, torch.tensor([0.5, 0.0])], ids=["float", "tensor"])
def test_clean_data_has_no_score(sigma: float | torch.Tensor) -> None:
    """Pains 4: raise instead of an infinite result."""
    with pytest.raises(LevelError, match="undefined at sigma = 0"):
        Score().coefficients(Level(sigma * 0.0 + 1.0, sigma))


@pytest.mark.parametrize("curve", [VP(), SubVP(), VE(sigma_max=8.0)], ids=["vp", "sub-vp", "ve"])
def test_the_weight_is_g2_on_the_score(curve: Schedule) -> None:
    """Identity D14: half the integral of g^2 |score error|^2 is the change of KL between the laws."""
    level = curve.level(T)
    _, g2 = sde(curve, T)
    torch.testing.assert_close(torch.as_tensor(Likelihood(curve).on_output(level, Score())), g2)
    torch.testing.assert_close(torch.as_tensor(Likelihood(curve)(level)), 2 * torch.as_tensor(VLBWeight(curve)(level)))
    one = curve.level(0.2)
    assert Likelihood(curve)(one) == pytest.approx(float(torch.as_tensor(Likelihood(curve)(level))[1]), rel=1e-9)


def test_the_weight_is_finite_on_discrete_schedules_and_at_alpha_0() -> None:
    for curve in (Linear(), zero_terminal()):
        t = torch.arange(1, (curve.steps or 0) + 1)
        w = torch.as_tensor(Likelihood(curve)(curve.level(t)))
        assert bool(torch.isfinite(w).all())
        assert bool((w >= 0).all())
    w = torch.as_tensor(Likelihood(Linear())(Linear().level(torch.tensor([500]))))
    drop = 0.5 * (Linear().level(499.0).snr - Linear().level(501.0).snr)
    assert w.item() == pytest.approx(drop, rel=2e-2)


def test_kl_between_two_gaussians_is_the_weighted_score_error() -> None:
    """Identity D14 in closed form: KL(p_0 | q_0) = KL(p_1 | q_1) + 1/2 int g^2 E_p|score_p - score_q|^2 dt."""
    curve, (mp, vp), (mq, vq) = VP(), (0.2, 0.5), (-0.3, 1.4)
    u = (torch.arange(20000, dtype=F64) + 0.5) / 20000
    level = curve.level(u)
    a, s = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    Vp, Vq = a**2 * vp + s**2, a**2 * vq + s**2
    slope, gap = 1 / Vq - 1 / Vp, a * (mp - mq) / Vq
    error = slope**2 * Vp + gap**2
    weight = torch.as_tensor(Likelihood(curve).on_output(level, Score()))

    def kl(level: Level) -> float:
        p, q = (float(level.alpha) ** 2 * v + float(level.sigma) ** 2 for v in (vp, vq))
        return 0.5 * (p / q - 1 - torch.log(torch.tensor(p / q)).item() + (float(level.alpha) * (mp - mq)) ** 2 / q)

    found = kl(curve.level(1.0)) + 0.5 * float((weight * error).mean())
    assert found == pytest.approx(kl(Level(1.0, 0.0)), rel=1e-6)
