"""The three processes: closed forms, the SDEs they solve, and the authors' numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffkit_score_sde.schedule import VE, VP, SubVP
from hypothesis import given, strategies as st

from diffkit import Discrete, Level, Schedule
from diffkit.schedule import sde

GOLDEN = json.loads((Path(__file__).parent / "golden" / "score-sde.json").read_text(encoding="utf-8"))
CURVES: dict[str, Schedule] = {"vp": VP(), "sub-vp": SubVP(), "ve": VE()}


@pytest.mark.parametrize("name", CURVES)
def test_marginals_and_coefficients_are_those_of_the_authors(name: str) -> None:
    """Identity A6. Their 1 - exp(-B) loses digits near t = 0, ours does not."""
    t = torch.tensor(GOLDEN["times"], dtype=torch.float64)
    level = CURVES[name].level(t)
    f, g2 = sde(CURVES[name], t)
    for found, key in ((level.alpha, "alpha"), (level.sigma, "sigma"), (f, "f"), (g2, "g2")):
        want = torch.tensor(GOLDEN[name][key], dtype=torch.float64)
        torch.testing.assert_close(
            torch.as_tensor(found), want, rtol=1e-9, atol=1e-15, msg=lambda m, k=key: f"{k}: {m}"
        )


@given(st.floats(1e-6, 1), st.floats(0.01, 100), st.sampled_from(sorted(CURVES)))
def test_time_inverts_level_at_any_scale(t: float, scale: float, name: str) -> None:
    curve = CURVES[name]
    level = curve.level(t)
    assert curve.time(Level(level.alpha * scale, level.sigma * scale)) == pytest.approx(t, rel=1e-9)


def test_sub_vp_never_has_more_noise_than_vp() -> None:
    for t in (1e-4, 0.1, 0.5, 1.0):
        one, other = VP().level(t), SubVP().level(t)
        assert one.alpha == other.alpha
        assert other.sigma == pytest.approx(one.sigma**2, rel=1e-12)
        assert other.sigma < one.sigma


@pytest.mark.parametrize("name", CURVES)
def test_the_moments_solve_their_equations(name: str) -> None:
    """Identity A12: m' = f m, v' = 2 f v + g^2, by Runge-Kutta; on VE the variance is sigma(t)^2 - sigma(s)^2."""
    curve, s, t, n = CURVES[name], 0.2, 0.6, 4000
    m, v, dt = 1.0, 0.0, (0.6 - 0.2) / n
    times = torch.linspace(s, t, 2 * n + 1, dtype=torch.float64)
    f, g2 = (c.tolist() for c in sde(curve, times))
    for i in range(n):
        k = []
        for j, (dm, dv) in enumerate(((0.0, 0.0), (0.5, 0.5), (0.5, 0.5), (1.0, 1.0))):
            at = 2 * i + (0, 1, 1, 2)[j]
            mm, vv = (m, v) if j == 0 else (m + dm * dt * k[-1][0], v + dv * dt * k[-1][1])
            k.append((f[at] * mm, 2 * f[at] * vv + g2[at]))
        m, v = (x + dt * (k[0][i] + 2 * k[1][i] + 2 * k[2][i] + k[3][i]) / 6 for i, x in ((0, m), (1, v)))
    a, b = curve.level(s), curve.level(t)
    assert m == pytest.approx(b.alpha / a.alpha, rel=1e-9)
    assert v == pytest.approx(b.sigma**2 - (m * a.sigma) ** 2, rel=1e-9)


def test_vp_is_the_limit_of_the_linear_schedule() -> None:
    """Identity A11: the discrete alpha_bar_T is lower by (b0^2 + b0 b1 + b1^2) / (6 N) in logarithm."""
    b0, b1, limit = 0.1, 20.0, 2 * math.log(VP().level(1.0).alpha)
    assert limit == pytest.approx(-(b0 + b1) / 2)
    for n in (1000, 4000):
        betas = torch.linspace(b0 / n, b1 / n, n, dtype=torch.float64)
        log_abar = 2 * math.log(Discrete(betas).level(float(n)).alpha)
        assert log_abar - limit == pytest.approx(-(b0 * b0 + b0 * b1 + b1 * b1) / (6 * n), rel=2e-2)


def test_options_change_the_curve_and_nonsense_is_refused() -> None:
    assert VP(beta_max=10.0).level(1.0).alpha > VP().level(1.0).alpha
    assert SubVP(beta_min=1.0).level(0.1).sigma > SubVP().level(0.1).sigma
    assert VE(sigma_max=1348.0).noise == Level(1.0, pytest.approx(1348.0))
    assert VE(sigma_min=0.5).level(0.0).sigma == 0.5
    assert VP(t_clean=1e-3).clean == Level(VP().level(1e-3).alpha, 0.0)
    assert VP(beta_min=3.0, beta_max=3.0).time(VP(beta_min=3.0, beta_max=3.0).level(0.4)) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="not below"):
        VE(sigma_min=1.0, sigma_max=0.5)
