"""The instruments themselves: probing (D5) and fitting orders (F1, F4), on methods written here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st
from torch import Tensor

from diffkit import Denoiser, Level, Sampler, transition
from diffkit.sampler import Noise
from diffkit.testing import (
    GaussianOracle,
    NotAffineError,
    first_order,
    fixtures,
    measure,
    polynomial_error,
    probe,
)
from diffkit.testing.affine import compose
from diffkit.testing.hypothesis_strategies import gaussians, grids


@dataclass(frozen=True)
class DDIM(Sampler[None]):
    eta: float = 0.0

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        return denoise(x, t).step_to(s, self.eta * float(transition.posterior(t, s)), noise), None


@dataclass(frozen=True)
class Multistep(Sampler[tuple[tuple[float, Tensor], ...]]):
    """DPM-Solver++ of second or third order, in the form of identities F1: `factor` 2 is right, 1 as published."""

    order: int = 2  # type: ignore[assignment]
    factor: float = 2.0

    def step(self, denoise, x, t, s, state, noise):  # type: ignore[no-untyped-def]
        estimate = denoise(x, t)
        known = ((float(t.half_logsnr), estimate.x0), *(state or ()))[: self.order]
        h = float(s.half_logsnr) - float(t.half_logsnr)
        first = 1.0 - math.exp(-h)
        phi2 = 1.0 - first / h
        guess = first * known[0][1]
        if len(known) > 1:
            d10 = (known[0][1] - known[1][1]) / ((known[0][0] - known[1][0]) / h)
            d1 = d10
            if len(known) > 2:
                r0, r1 = (known[0][0] - known[1][0]) / h, (known[1][0] - known[2][0]) / h
                d11 = (known[1][1] - known[2][1]) / r1
                d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
                guess = guess + self.factor * (0.5 - phi2 / h) * (d10 - d11) / (r0 + r1)
            guess = guess + phi2 * d1
        return estimate.with_x0(guess / first).step_to(s), known


class Heun(Sampler[None]):
    """In sigma."""

    order = 2

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        first = denoise(x, t)
        second = denoise(first.step_to(s), s)
        d = float(s.sigma) / float(s.alpha) - float(t.sigma) / float(t.alpha)
        return float(s.alpha) * (x / float(t.alpha) + d / 2 * (first.eps + second.eps)), None


@pytest.mark.parametrize(
    ("sampler", "starts", "order"),
    [
        (DDIM(), 1, 1.0),
        (Heun(), 1, 2.0),
        (Multistep(2), 2, 2.0),
        (Multistep(3), 3, 3.0),
        (Multistep(3, 1.0), 3, 2.0),
        (Multistep(3), 1, 2.05),
    ],
    ids=["ddim", "heun", "2M", "3M", "3M as published", "3M cold"],
)
def test_orders(sampler: Sampler[None], starts: int, order: float) -> None:
    """F1, to 0.15."""
    fit = measure(sampler, (40, 80, 160, 320), exact_starts=starts)
    assert fit.slope == pytest.approx(order, abs=0.15)
    assert list(fit.errors) == sorted(fit.errors, reverse=True)


def test_polynomials() -> None:
    """F4: the published third order is not exact on squares, the corrected one is."""
    for order in (2, 3):
        for degree in range(order):
            assert polynomial_error(Multistep(order), degree) < 1e-11
        assert polynomial_error(Multistep(order), order) > 1e-3
    assert polynomial_error(Multistep(3, 1.0), 2) > 1e-4


@given(gaussians(3), grids(6, clean=False), st.sampled_from([0.0, 1.0]))
def test_probe(oracle: GaussianOracle, levels: list[Level], eta: float) -> None:
    """D5, on grids of any scale."""
    got = probe(oracle, DDIM(eta), levels, oracle.dimensions)
    want = compose(oracle, levels, lambda o, t, s: first_order(o, t, s, eta * float(transition.posterior(t, s))))
    for name in ("A", "b", "Q"):
        size = max(1.0, float(getattr(want, name).abs().max()))
        assert float((getattr(got, name) - getattr(want, name)).abs().max()) < 1e-10 * size


def test_what_is_not_affine_is_refused() -> None:
    with pytest.raises(NotAffineError, match="not affine"):
        probe(fixtures.mixture(), DDIM(), fixtures.path(4, clean=True), 2)
