"""The schedule, the predictions, the times and the grid, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffkit_flow.grid import Shifted
from diffkit_flow.parameterization import Flow, V
from diffkit_flow.sampler import Straight
from diffkit_flow.schedule import Rectified
from diffkit_flow.times import LogitNormal
from hypothesis import given, settings, strategies as st

from diffkit import Grid, Level, sample
from diffkit.basics.grid import Leading, Quadratic, Trailing
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.weighting import SNR
from diffkit.testing import GaussianOracle, MixtureOracle, PointMassOracle
from diffkit.testing.order import measure

F64 = torch.float64
Unit = st.floats(1e-6, 1 - 1e-6)
MIXTURE = MixtureOracle([0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.04, 0.09])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)


@settings(deadline=None)
@given(t=Unit)
def test_the_path_is_straight_and_half_logsnr_is_minus_logit(t: float) -> None:
    """Identity A7."""
    level = Rectified().level(t)
    assert (level.alpha, level.sigma) == (1 - t, t)
    assert Rectified().time(level) == pytest.approx(t, rel=1e-14)
    assert Rectified().time(Level(3 * (1 - t), 3 * t)) == pytest.approx(t, rel=1e-14)
    assert level.half_logsnr == pytest.approx(-math.log(t / (1 - t)), abs=1e-9)


def test_the_path_reaches_both_ends() -> None:
    assert Rectified().level(0.0).is_clean
    assert Rectified().noise.is_noise
    assert Rectified().time(Level(0.0, 1.0)) == 1.0
    assert Rectified().clean == Level(1.0, 0.0)


@settings(deadline=None)
@given(t=st.floats(0, 1), x0=st.floats(-2, 2), eps=st.floats(-3, 3))
def test_the_velocity_is_the_slope_of_the_path(t: float, x0: float, eps: float) -> None:
    a, b = (torch.tensor([v], dtype=F64) for v in (x0, eps))
    level = Rectified().level(t)
    x, u = level.add_noise(a, b), Flow().target(a, b, level)
    assert u.item() == pytest.approx(eps - x0)
    known = Flow().decode(u, x, level)
    assert known.x0.item() == pytest.approx((x - t * u).item(), abs=1e-12)
    assert known.eps.item() == pytest.approx((x + (1 - t) * u).item(), abs=1e-12)


@settings(deadline=None)
@given(angle=st.floats(0, math.pi / 2), scale=st.floats(0.2, 5), x0=st.floats(-2, 2), eps=st.floats(-3, 3))
def test_v_is_a_rotation(angle: float, scale: float, x0: float, eps: float) -> None:
    """Identity C1b: x0 = alpha x - sigma v, eps = sigma x + alpha v if alpha^2 + sigma^2 = 1; any scale decodes."""
    a, b = (torch.tensor([v], dtype=F64) for v in (x0, eps))
    unit = Level(math.cos(angle), math.sin(angle))
    v = V().target(a, b, unit)
    assert (unit.alpha * unit.add_noise(a, b) - unit.sigma * v).item() == pytest.approx(x0, abs=1e-12)
    level = Level(scale * unit.alpha, scale * unit.sigma)
    torch.testing.assert_close(V().target(a, b, level), v, rtol=1e-12, atol=1e-12)
    known = V().decode(v, level.add_noise(a, b), level)
    assert (known.x0.item(), known.eps.item()) == pytest.approx((x0, eps), abs=1e-11)


def test_both_decode_at_pure_noise_and_at_clean_data() -> None:
    """Pains 4: the prediction determines x0 at alpha = 0, and eps at sigma = 0."""
    a, b = torch.tensor([0.3], dtype=F64), torch.tensor([-1.4], dtype=F64)
    for own in (Flow(), V()):
        for level in (Level(0.0, 1.0), Level(1.0, 0.0)):
            known = own.decode(own.target(a, b, level), level.add_noise(a, b), level)
            assert (known.x0.item(), known.eps.item()) == pytest.approx((0.3, -1.4))


@settings(deadline=None)
@given(t=st.floats(0.01, 0.99))
def test_weights(t: float) -> None:
    """Pains 12, identity C3: |du|^2 = (1 + sqrt(snr))^2 |dx0|^2 on the path, |dv|^2 = (1 + snr) |dx0|^2 on VP."""
    level = Rectified().level(t)
    assert Flow().weight(level) == pytest.approx((1 + math.sqrt(level.snr)) ** 2)
    vp = Level(math.cos(t), math.sin(t))
    assert V().weight(vp) == pytest.approx(1 + vp.snr)
    assert SNR().on_output(vp, V()) == pytest.approx(vp.snr / (1 + vp.snr))


def test_times_are_logit_normal() -> None:
    uniform = (torch.arange(4096) / 4096).float()
    logits = torch.logit(LogitNormal().draw(uniform, Rectified()))
    assert logits.dtype == F64
    assert logits.mean().item() == pytest.approx(0.0, abs=0.01)
    assert logits.std().item() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(torch.logit(LogitNormal(0.5, 2.0).draw(uniform, Rectified())), 0.5 + 2.0 * logits)


def test_a_shift_in_training_is_a_shift_of_the_mean() -> None:
    """Identity A15: t' = s t / (1 + (s - 1) t) adds log s to logit(t)."""
    uniform = torch.linspace(0.01, 0.99, 20)
    t = LogitNormal().draw(uniform, Rectified())
    shifted = LogitNormal(math.log(3.0)).draw(uniform, Rectified())
    torch.testing.assert_close(shifted, 3.0 * t / (1 + 2.0 * t))


def test_times_stay_on_every_schedule() -> None:
    uniform = torch.tensor([0.0, 0.5, 1.0 - 2.0**-24])
    t = LogitNormal(0.0, 3.0).draw(uniform, Rectified())
    assert ((t > 0) & (t < 1)).all()
    whole = LogitNormal(0.0, 9.0).draw(uniform, Linear())
    assert not whole.is_floating_point()
    assert whole[[0, 2]].tolist() == [1, 1000]
    middle = Linear().level(float(whole[1]))
    assert middle.half_logsnr == pytest.approx(0.0, abs=0.01)


@settings(deadline=None)
@given(s=st.floats(0.2, 8.0), n=st.integers(1, 40))
def test_the_shift_is_that_of_log_snr(s: float, n: int) -> None:
    """Identity A15: half_logsnr' = half_logsnr - log s on the flow family, both ends kept."""
    plain, shifted = Trailing().levels(Rectified(), n), Shifted(s).levels(Rectified(), n)
    assert len(shifted) == n + 1
    assert shifted[0].is_noise
    assert shifted[-1].is_clean
    for a, b in zip(plain[1:-1], shifted[1:-1]):
        assert float(b.half_logsnr) == pytest.approx(float(a.half_logsnr) - math.log(s), abs=1e-9)


def test_the_shift_is_never_applied_twice() -> None:
    """Pains 17: computed from the unshifted grid each time; the shifts of nested grids multiply."""
    own = Shifted(3.0, Quadratic())
    first = own.levels(Rectified(), 9)
    assert own.levels(Rectified(), 9) == first
    nested = Shifted(2.0, Shifted(1.5, Quadratic())).levels(Rectified(), 9)
    assert [float(v.sigma) for v in nested] == pytest.approx([float(v.sigma) for v in first])
    assert Shifted(1.0, Quadratic()).levels(Rectified(), 9) == pytest.approx(Quadratic().levels(Rectified(), 9))


@settings(deadline=None)
@given(n=st.integers(1, 1000), s=st.floats(0.2, 8.0))
def test_every_number_of_steps_on_a_discrete_schedule(n: int, s: float) -> None:
    """Pains 2."""
    found = Shifted(s).times(Linear(), n)
    assert len(found) == n
    assert found[0] == 1000.0
    assert all(a > b >= 1 for a, b in pairwise(found))


def test_the_shift_declares_what_its_inner_grid_does() -> None:
    class Late(Grid):
        reaches_noise = False

        def points(self, schedule: object, n: int) -> list[float]:
            return [0.5]

    assert not Shifted(2.0, Late()).reaches_noise
    assert Shifted(2.0, Leading()).discrete_only
    assert Shifted(2.0, Leading()).declares_deficit
    assert not Shifted(2.0).discrete_only
    assert Shifted(2.0).reaches_noise
    assert not Shifted(2.0).declares_deficit


def test_a_straight_step_is_euler_on_the_velocity() -> None:
    """Identity A8b."""
    t, s = 0.8, 0.55
    known = MIXTURE(X, Rectified().level(t))
    got, _ = Straight().step(MIXTURE, X, Rectified().level(t), Rectified().level(s), None, torch.zeros_like)
    torch.testing.assert_close(got, X + (s - t) * (known.eps - known.x0), rtol=1e-12, atol=1e-12)


def test_the_sampler() -> None:
    """Identities F1 and F2: first order, and exact if the data is one point."""
    assert measure(Straight(), (80, 160, 320)).slope == pytest.approx(1.0, abs=0.1)
    oracle = PointMassOracle(torch.tensor([0.7], dtype=F64))
    for n in (1, 2, 5):
        got = sample(oracle, Straight(), Trailing().levels(Rectified(), n), X)
        torch.testing.assert_close(got, torch.full_like(X, 0.7))
    assert Straight().nfe(7) == 7


def test_sampling_from_pure_noise_gives_the_data() -> None:
    oracle = GaussianOracle(torch.tensor([0.4], dtype=F64), 0.09)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    got = sample(oracle, Straight(), Shifted(1.0).levels(Rectified(), 2000), x)
    torch.testing.assert_close(got, 0.4 + 0.3 * x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_diffusers_flow_euler(shift: float) -> None:
    """FlowMatchEulerDiscreteScheduler with the sigmas given to it, as pipelines do: the shift is then applied once."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    n = 8
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=[1 - i / n for i in range(n)])
    levels = Shifted(shift).levels(Rectified(), n)
    assert reference.sigmas.tolist() == pytest.approx([float(v.sigma) for v in levels], abs=1e-6)
    x = X.float()
    for t, level in zip(reference.timesteps, levels):
        known = MIXTURE(x.double(), level)
        x = reference.step((known.eps - known.x0).float(), t, x).prev_sample
    torch.testing.assert_close(sample(MIXTURE, Straight(), levels, X), x.double(), rtol=1e-4, atol=1e-4)


def test_defect_diffusers_shifts_twice() -> None:
    """Pains 17 (diffusers#13243): given a number of steps, it shifts between ends that are shifted already."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    n, s = 8, 3.0
    reference = FlowMatchEulerDiscreteScheduler(shift=s)
    reference.set_timesteps(n)
    last = s * 1e-3 / (1 + (s - 1) * 1e-3)
    twice = s * last / (1 + (s - 1) * last)
    assert reference.sigmas[n - 1].item() == pytest.approx(twice, rel=1e-3)
    assert float(Shifted(s).levels(Rectified(), n)[n - 1].sigma) == pytest.approx(s / n / (1 + (s - 1) / n))
