"""Orders, exactness and coefficients, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffkit_dpmsolver.adams import Adams
from diffkit_dpmsolver.coefficients import moments, noisy_step, weights
from diffkit_dpmsolver.linear import Memory
from diffkit_dpmsolver.multistep import DPMpp2M, DPMpp3M
from diffkit_dpmsolver.singlestep import DPMpp2S
from diffkit_dpmsolver.unipc import UniPC
from hypothesis import given, settings, strategies as st

from diffkit import Level, Sampler, sample
from diffkit.testing import PointMassOracle, PolynomialOracle
from diffkit.testing.order import at_logsnr, logsnr_levels, measure, polynomial_error

F64 = torch.float64


def integral(length: float, k: int, parts: int = 4000) -> float:
    """int_0^1 H exp(-H (1 - tau)) tau^k dtau by Simpson's rule."""
    tau = torch.linspace(0, 1, 2 * parts + 1, dtype=F64)
    f = length * torch.exp(-length * (1 - tau)) * tau**k
    return float((f[0] + f[-1] + 4 * f[1::2].sum() + 2 * f[2:-1:2].sum()) / (6 * parts))


@pytest.mark.parametrize("length", [1e-6, 0.01, 0.9999, 1.0, 1.3, 7.0])
def test_moments_are_the_integrals(length: float) -> None:
    for k, moment in enumerate(moments(length, 4)):
        assert moment == pytest.approx(integral(length, k), rel=1e-11)


def test_moments_are_those_of_the_paper() -> None:
    """Identity F4b: phi_1 = 1 - e^-H, phi_2 = 1 - phi_1 / H, 2 (1/2 - phi_2 / H)."""
    for h in (0.3, 2.0):
        phi1 = 1 - math.exp(-h)
        phi2 = 1 - phi1 / h
        assert moments(h, 3) == pytest.approx([phi1, phi2, 2 * (0.5 - phi2 / h)], rel=1e-13)


@settings(deadline=None)
@given(h=st.floats(0.01, 4.0), a=st.floats(-3, -0.1), b=st.floats(-3, -0.1), c=st.floats(-2, 2), d=st.floats(-2, 2))
def test_weights_integrate_polynomials(h: float, a: float, b: float, c: float, d: float) -> None:
    nodes = [0.0, a, a + b, 1.0]
    exact = moments(h, 4)
    found = sum(w * (c * r**2 + d * r**3) for w, r in zip(weights(exact, nodes), nodes))
    assert found == pytest.approx(c * exact[2] + d * exact[3], abs=1e-9)


ORDERS: list[tuple[Sampler, int, float, int]] = [
    (DPMpp2M(), 1, 2.0, 2),
    (DPMpp2M("heun"), 1, 2.0, 2),
    (DPMpp2S(), 1, 2.0, 2),
    (DPMpp2S(r=0.3), 1, 2.0, 2),
    (DPMpp3M(), 3, 3.0, 3),
    (DPMpp3M(), 1, 2.0, 3),
    (UniPC(1, corrector=False), 1, 1.0, 1),
    (UniPC(1), 1, 2.0, 1),
    (UniPC(2, corrector=False), 1, 2.0, 2),
    (UniPC(2, "bh1"), 1, 3.0, 2),
    (UniPC(2, "bh2"), 1, 3.0, 2),
    (UniPC(2, "exact"), 1, 3.0, 2),
    (UniPC(3, corrector=False), 3, 3.0, 3),
]


@pytest.mark.parametrize(("sampler", "exact_starts", "slope", "declared"), ORDERS, ids=repr)
def test_measured_order(sampler: Sampler, exact_starts: int, slope: float, declared: int) -> None:
    """Identity F1: against the exact flow of a mixture. 3M from a cold start is of second order."""
    assert measure(sampler, (40, 80, 160), exact_starts=exact_starts).slope == pytest.approx(slope, abs=0.2)
    assert sampler.order == declared


def test_the_third_order_of_unipc_grows_to_four() -> None:
    """Identity F1: UniPC-3 is of order 4 after its start; between 3 and 4 from a cold one."""
    assert 2.8 < measure(UniPC(3), (80, 160, 320)).slope < 4.2
    assert measure(UniPC(3), (160,)).errors[0] < 0.2 * measure(UniPC(2), (160,)).errors[0]


def test_defect_3m_as_published_is_of_second_order() -> None:
    """Identity F1, table K "third order": the factor 2 is missing, so that even an exact start gives order 2."""
    assert DPMpp3M(published=True).order == 2
    published = measure(DPMpp3M(published=True), (40, 80, 160), exact_starts=3)
    correct = measure(DPMpp3M(), (40, 80, 160), exact_starts=3)
    assert published.slope == pytest.approx(2.0, abs=0.15)
    assert correct.slope == pytest.approx(3.0, abs=0.15)
    assert correct.errors[-1] < 0.05 * published.errors[-1]
    assert polynomial_error(DPMpp3M(published=True), 2) > 1e-3


@pytest.mark.parametrize(
    ("sampler", "degree"),
    [
        (DPMpp2M(), 0),
        (DPMpp2M("heun"), 1),
        (DPMpp3M(), 2),
        (UniPC(2, "exact"), 1),
        (UniPC(3, "bh2", corrector=False), 2),
        (UniPC(3, "exact", corrector=False), 2),
    ],
    ids=repr,
)
def test_polynomials_are_integrated_exactly(sampler: Sampler, degree: int) -> None:
    """Identity F4. The midpoint variant is exact for constants only."""
    for k in range(degree + 1):
        assert polynomial_error(sampler, k) < 1e-12
    assert polynomial_error(sampler, degree + 1) > 1e-5


@pytest.mark.parametrize(
    ("sampler", "coefficients"), [(DPMpp2M("heun", 0.6), [0.2, 1.0]), (DPMpp3M(eta=0.6), [0.2, 1.0, -0.7])], ids=repr
)
def test_polynomials_are_integrated_exactly_under_the_sde(sampler: Sampler, coefficients: list[float]) -> None:
    """Identity F4b: with H in the place of h the noise-free part is exact too."""
    levels, oracle = logsnr_levels(5), PolynomialOracle(coefficients)
    x, state = torch.ones(1, 1, dtype=F64), None
    for i, (t, s) in enumerate(pairwise(levels)):
        after, state = sampler.step(oracle, x, t, s, state, torch.zeros_like)
        _, length = noisy_step(t, s, 0.6)
        clock, h = float(t.half_logsnr), float(s.half_logsnr) - float(t.half_logsnr)
        tau = torch.linspace(0, 1, 2001, dtype=F64)
        f = (
            sum(c * (clock + tau * h) ** k for k, c in enumerate(coefficients))
            * length
            * torch.exp(-length * (1 - tau))
        )
        whole = float((f[0] + f[-1] + 4 * f[1::2].sum() + 2 * f[2:-1:2].sum()) / 6000)
        exact = float(s.sigma) / float(t.sigma) * math.exp(h - length) * x + float(s.alpha) * whole
        if i >= len(coefficients) - 1:
            torch.testing.assert_close(after, exact, rtol=1e-11, atol=1e-11)
        x = after


SAMPLERS = [
    DPMpp2M(),
    DPMpp2M("heun"),
    DPMpp3M(),
    DPMpp3M(published=True),
    DPMpp2S(),
    *(UniPC(p, v) for p in (1, 2, 3) for v in ("bh1", "bh2", "exact")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("first", ["noise", "noisy"])
def test_a_point_mass_is_reached_exactly(sampler: Sampler, n: int, first: str) -> None:
    """Identity F2; pains 19: one step, a start at alpha = 0, an end with noise and one without."""
    start = Level(0.0, 1.0) if first == "noise" else at_logsnr(-4.0)
    oracle, x = PointMassOracle(torch.tensor([0.7], dtype=F64)), torch.tensor([[1.3], [-0.4]], dtype=F64)
    eps = (x - start.alpha * 0.7) / start.sigma
    inner = [at_logsnr(-3.0 + 5.0 * (i / n) ** 2) for i in range(1, n)]
    for last in (Level(1.0, 0.0), at_logsnr(3.0)):
        got = sample(oracle, sampler, [start, *inner, last], x)
        torch.testing.assert_close(got, last.alpha * 0.7 + last.sigma * eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_variants_of_unipc_differ_where_there_are_two_nodes(p: int) -> None:
    """Where more nodes determine the coefficients the B of the paper cancels."""
    results = [measure(UniPC(p, v), (10,)).errors[0] for v in ("bh1", "bh2", "exact")]  # type: ignore[arg-type]
    assert len(set(results)) == 3


def test_evaluations() -> None:
    for sampler, count in ((DPMpp2M(), 9), (DPMpp3M(), 9), (UniPC(3), 9), (DPMpp2S(), 17)):
        calls = 0

        def denoise(x: torch.Tensor, level: Level, /, **cond: torch.Tensor):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            return PointMassOracle(torch.tensor([0.7]))(x, level)

        sample(denoise, sampler, [*logsnr_levels(8), Level(1.0, 0.0)], torch.zeros(1, 1))
        assert calls == count == sampler.nfe(9)


@pytest.mark.parametrize("sampler", [DPMpp2M(), UniPC(), Adams()], ids=lambda one: type(one).__name__)
def test_remembered_steps_outlive_the_mode_they_were_made_in(sampler: Sampler[Memory]) -> None:
    """Inference tensors cannot be differentiated through, and a default device is for new tensors."""
    levels = logsnr_levels(7, -1.7, 2.1)
    oracle = PolynomialOracle([0.3, -1.0])
    with torch.inference_mode(), torch.device("meta"):
        sample(oracle, sampler, levels, torch.ones(2, 1, dtype=F64, device="cpu"), noise=torch.zeros_like)
    x = torch.ones(2, 1, dtype=F64, requires_grad=True)
    z, state = x, None
    for t, s in pairwise(levels):
        z, state = sampler.step(oracle, z, t, s, state, torch.zeros_like)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert float(gradient.min()) > 0
