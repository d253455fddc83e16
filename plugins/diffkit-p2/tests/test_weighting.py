"""The closed forms of the three weightings, and that they are one loss in every parameterization."""

from __future__ import annotations

import math

import pytest
import torch
from diffkit_p2.weighting import P2, MinSNR, SoftMinSNR

from diffkit import Level
from diffkit.ddpm.parameterization import X0, Eps
from diffkit.ddpm.schedule import Linear

LEVELS = [Level(math.cos(a), math.sin(a)) for a in (0.05, 0.4, 0.8, 1.2, 1.5)]


@pytest.mark.parametrize("level", LEVELS)
def test_p2_divides_the_loss_of_eps(level: Level) -> None:
    """Identity C5: k = gamma = 1 gives sigma^2 on eps, alpha^2 on x0 (VP)."""
    assert P2().on_output(level, Eps()) == pytest.approx(level.sigma**2, rel=1e-12)
    assert P2()(level) == pytest.approx(level.alpha**2, rel=1e-12)
    assert P2(k=2.0, gamma=0.5).on_output(level, Eps()) == pytest.approx((2.0 + level.snr) ** -0.5, rel=1e-12)
    assert P2(gamma=0.0).on_output(level, Eps()) == pytest.approx(1.0)


@pytest.mark.parametrize("level", LEVELS)
def test_min_snr_has_one_meaning_in_every_space(level: Level) -> None:
    """Pains 12; identity C5: min(snr, g) on x0, min(snr, g) / snr on eps."""
    assert MinSNR(5.0).on_output(level, X0()) == pytest.approx(min(level.snr, 5.0), rel=1e-12)
    assert MinSNR(5.0).on_output(level, Eps()) == pytest.approx(min(level.snr, 5.0) / level.snr, rel=1e-12)
    assert MinSNR(0.1)(level) <= 0.1


@pytest.mark.parametrize("level", LEVELS)
def test_soft_min_snr_is_the_harmonic_form(level: Level) -> None:
    assert SoftMinSNR(4.0)(level) == pytest.approx(level.snr * 4.0 / (level.snr + 4.0), rel=1e-12)
    assert SoftMinSNR(2.0)(level) < MinSNR(2.0)(level)


@pytest.mark.parametrize("weighting", [P2(), MinSNR(), SoftMinSNR()], ids=lambda w: type(w).__name__)
def test_tensors_agree_with_floats_and_ends_are_finite(weighting: P2 | MinSNR | SoftMinSNR) -> None:
    t = torch.tensor([1, 500, 1000])
    many = weighting(Linear().level(t))
    for i, one in enumerate(t.tolist()):
        assert many[i].item() == pytest.approx(weighting(Linear().level(float(one))), rel=1e-12)
    assert weighting(Level(0.0, 1.0)) == 0.0
