"""The cosine schedule against its closed form, its authors' table, and diffusers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffkit_improved_ddpm.schedule import Cosine
from hypothesis import given, strategies as st

GOLDEN = json.loads((Path(__file__).parent / "golden" / "improved-diffusion.json").read_text(encoding="utf-8"))


def f(u: float, s: float = 0.008) -> float:
    return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2


@given(st.integers(10, 4000))
def test_alpha_bar_is_the_squared_cosine_until_the_last_step(steps: int) -> None:
    """Identity A9: one beta, the last, is clipped."""
    schedule = Cosine(steps)
    for t in {1, 2, steps // 2, steps - 1}:
        assert schedule.level(float(t)).alpha ** 2 == pytest.approx(f(t / steps) / f(0), rel=1e-9)
    assert int((schedule.betas == 0.999).sum()) == 1
    last, before = (schedule.level(float(t)).alpha ** 2 for t in (steps, steps - 1))
    assert last == pytest.approx(0.001 * before, rel=1e-9)
    assert last > 0


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_the_betas_are_those_of_the_authors(steps: int) -> None:
    want = torch.tensor(GOLDEN["betas"][str(steps)], dtype=torch.float64)
    torch.testing.assert_close(Cosine(steps).betas, want, rtol=1e-10, atol=0)


def test_diffusers_agrees_within_its_float32() -> None:
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(Cosine().betas.float(), reference, rtol=1e-5, atol=1e-7)


def test_offset_and_clip_do_something() -> None:
    schedule = Cosine(100, offset=0.1, max_beta=0.5)
    assert schedule.level(50.0).alpha ** 2 == pytest.approx(f(0.5, 0.1) / f(0, 0.1), rel=1e-9)
    assert float(schedule.betas.max()) == 0.5
    assert not torch.allclose(schedule.betas[:50], Cosine(100).betas[:50])


def test_edm_sigmas_of_iddpm_are_those_of_the_cosine_schedule() -> None:
    """Identity A13: u_j of Karras et al. 2022, table 1, is sqrt((1 - abar) / abar) with the index reversed."""
    M, C1, C2 = 1000, 0.001, 0.008
    alpha_bar = [math.sin(0.5 * math.pi * j / M / (C2 + 1)) ** 2 for j in range(M + 1)]
    u = [0.0]
    for j in range(M, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], C1) - 1))
    for t in (1, 10, 500, 999, 1000):
        assert u[t] == pytest.approx(Cosine(1000).level(float(t)).snr ** -0.5, rel=1e-9)
