"""The stochastic samplers against the authors' code, closed forms, and each other."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_score_sde.corrector import PredictorCorrector
from diffkit_score_sde.sampler import EulerMaruyama, ReverseDiffusion, noise_between
from diffkit_score_sde.schedule import VE, VP, SubVP
from torch import Tensor

from diffkit import Discrete, Estimate, Level, SampleNoise, Sampler, Schedule, sample, transition
from diffkit.basics.grid import Trailing
from diffkit.ddpm.sampler import Ancestral
from diffkit.schedule import sde
from diffkit.testing import GaussianOracle, Normal, probe
from diffkit.testing.fixtures import mixture

F64 = torch.float64
GOLDEN = json.loads((Path(__file__).parent / "golden" / "score-sde.json").read_text(encoding="utf-8"))
N = GOLDEN["steps"]
X, Z = (torch.tensor(GOLDEN[name], dtype=F64) for name in "xz")
CURVES: dict[str, Schedule] = {"vp": VP(), "sub-vp": SubVP(), "ve": VE()}


def affine(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
    """A denoiser whose score is -0.7 x + 0.1."""
    eps = -level.sigma * (-0.7 * x + 0.1)
    return Estimate(level, (x - level.sigma * eps) / level.alpha, eps)


def one(sampler: Sampler[Any], t: Level, s: Level) -> Tensor:
    x, _ = sampler.step(affine, X, t, s, sampler.init([t, s]), lambda x: Z)
    return x


def pair(name: str, index: int) -> tuple[Level, Level]:
    """Two neighbours of the authors' discrete processes."""
    if name == "vp":
        curve = Discrete(torch.linspace(0.1 / N, 20.0 / N, N, dtype=F64))
        return curve.level(float(index + 1)), curve.level(float(index))
    return VE().level(index / (N - 1)), VE().level((index - 1) / (N - 1))


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("place", range(len(GOLDEN["indices"])))
def test_reverse_diffusion_is_that_of_the_authors(name: str, place: int) -> None:
    want = torch.tensor(GOLDEN[name]["reverse_diffusion"][place], dtype=F64)
    found = one(ReverseDiffusion(), *pair(name, GOLDEN["indices"][place]))
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "variance"), [("vp", "large"), ("ve", "small")])
@pytest.mark.parametrize("place", range(len(GOLDEN["indices"])))
def test_their_ancestral_sampler_is_the_core_one(name: str, variance: str, place: int) -> None:
    """With the large variance on VP, and the small one on VE; identities K."""
    want = torch.tensor(GOLDEN[name]["ancestral_sampling"][place], dtype=F64)
    found = one(Ancestral(variance), *pair(name, GOLDEN["indices"][place]))  # type: ignore[arg-type]
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CURVES)
def test_euler_maruyama_in_small_steps_is_that_of_the_authors(name: str) -> None:
    """They take f dt and g^2 dt at t, which differ from the integrals by O(dt^2)."""
    curve = CURVES[name]
    want = torch.tensor(GOLDEN[name]["euler_maruyama"], dtype=F64)
    torch.testing.assert_close(one(EulerMaruyama(), curve.level(0.5), curve.level(0.5 - 1e-5)), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize(("theirs", "corrector"), [("langevin", "langevin"), ("ald", "annealed")])
def test_two_langevirounds_are_those_of_the_authors(name: str, theirs: str, corrector: Any) -> None:
    """For a batch of one, where the norm of the batch is that of the sample; and |z| for sqrt(D)."""

    class Stay(Sampler[None]):
        def step(self, denoise: Any, x: Tensor, t: Level, s: Level, state: None, noise: Any) -> tuple[Tensor, None]:
            return x, None

    level = CURVES[name].level(0.6)
    ratio = 0.16 * (float(Z.norm()) / math.sqrt(Z.numel()) if corrector == "langevin" else 1.0)
    sampler = PredictorCorrector(Stay(), corrector, ratio=ratio, rounds=2)
    want = torch.tensor(GOLDEN[name][theirs], dtype=F64)
    torch.testing.assert_close(one(sampler, CURVES[name].level(0.61), level), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CURVES)
def test_the_integral_of_g2(name: str) -> None:
    """Exact on VP and VE; on sub-VP the error is of third order in the step. Identity A6."""
    curve, errors = CURVES[name], []
    for width in (0.04, 0.02):
        times = torch.linspace(0.4 - width / 2, 0.4 + width / 2, 20001, dtype=F64)
        _, g2 = sde(curve, times)
        want = float(torch.trapezoid(g2, times))
        found = noise_between(curve.level(float(times[-1])), curve.level(float(times[0])))
        errors.append(abs(found / want - 1))
    if name == "sub-vp":
        assert errors[0] < 1e-2
        assert errors[1] < errors[0] / 3.5
    else:
        assert max(errors) < 1e-7


def test_on_ve_the_two_discretisations_are_one() -> None:
    t, s = VE().level(0.7), VE().level(0.6)
    torch.testing.assert_close(one(EulerMaruyama(), t, s), one(ReverseDiffusion(), t, s), rtol=1e-12, atol=1e-12)
    rest = one(EulerMaruyama(), t, s) - X
    torch.testing.assert_close(rest, (t.sigma**2 - s.sigma**2) * (-0.7 * X + 0.1) + transition.spread(t, s) * Z)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("sampler", [EulerMaruyama(), ReverseDiffusion()], ids=["euler", "reverse"])
def test_the_law_converges_to_that_of_the_data_on_every_curve(sampler: Sampler[None], name: str) -> None:
    """Identity D15: A, b and Q of the run push the exact law of x_t, with an error of first order."""
    oracle, curve = GaussianOracle(torch.tensor([0.5], dtype=F64), 0.3), CURVES[name]
    errors = []
    for n in (100, 200):
        levels = [curve.level(0.05 + 0.75 * (1 - i / n)) for i in range(n + 1)]
        first, last = (
            Normal(level.alpha * oracle.mean, level.alpha**2 * oracle.matrix + level.sigma**2) for level in levels[::n]
        )
        got = probe(oracle, sampler, levels, 1).push(first)
        errors.append(float((got.covariance - last.covariance).abs() + (got.mean - last.mean).abs()))
    assert errors[0] < 0.1
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.25)


def test_langevirounds_keep_the_law_they_have() -> None:
    """Identity F6: x + d score + sqrt(2 d) z on N(m, S) has stationary variance S / (1 - d / (2 S))."""
    oracle, level = GaussianOracle(torch.tensor([0.5], dtype=F64), 0.3), VP().level(0.5)
    V = level.alpha**2 * 0.3 + level.sigma**2
    d = 2 * (0.2 * level.sigma) ** 2
    run = probe(oracle, PredictorCorrector(None, "annealed", ratio=0.2, rounds=400), [VP().level(0.51), level], 1)
    assert float(run.Q) == pytest.approx(V / (1 - d / (2 * V)), rel=1e-6)
    assert float(run.b) == pytest.approx(level.alpha * 0.5, rel=1e-6)


@pytest.mark.parametrize("dimensions", [4, 32])
def test_steps_sized_by_the_norm_of_the_score_have_a_known_bias(dimensions: int) -> None:
    """The invariant law is p |score|^2: the variance of N(0, 1) becomes (D + 2) / D; the price of independence."""
    oracle, source = GaussianOracle(0.0, 1.0), torch.Generator().manual_seed(0)
    x = torch.randn(1000, dimensions, dtype=F64, generator=source)
    t, s = VP().level(0.51), VP().level(0.5)
    found: dict[str, float] = {}
    for corrector in ("langevin", "annealed"):
        sampler = PredictorCorrector(None, corrector, ratio=0.16, rounds=150)  # type: ignore[arg-type]
        y, _ = sampler.step(oracle, x, t, s, None, lambda z: torch.randn(z.shape, dtype=F64, generator=source))
        found[corrector] = float(y.square().mean())
    assert found["langevin"] == pytest.approx(1 + 2 / dimensions, rel=0.1)
    assert found["annealed"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("corrector", ["langevin", "annealed"])
def test_a_sample_does_not_feel_its_batch(corrector: Any) -> None:
    """Pains 16: the authors' code divides by the norm of the whole batch."""
    levels, noise = Trailing().levels(VP(t_clean=1e-3), 8), SampleNoise(3, [4, 5, 6])
    sampler = PredictorCorrector(corrector=corrector, rounds=2)
    whole = sample(mixture(), sampler, levels, noise.initial((2,)).double(), noise=noise)
    for row, i in enumerate((4, 5, 6)):
        alone = SampleNoise(3, [i])
        torch.testing.assert_close(
            sample(mixture(), sampler, levels, alone.initial((2,)).double(), noise=alone)[0], whole[row]
        )


def test_corrections_improve_the_law_of_a_coarse_predictor() -> None:
    """What the corrector is for: 12 coarse steps of Euler-Maruyama, with and without it, on 64 dimensions."""
    oracle = GaussianOracle(0.0, torch.full((64,), 0.25, dtype=F64))
    levels = [VP().level(1.0 - 0.95 * i / 12) for i in range(13)]
    noise = SampleNoise(0, range(64))
    x = noise.initial((64,)).double()
    want = math.sqrt(levels[-1].alpha ** 2 * 0.25 + levels[-1].sigma ** 2)
    plain = float(sample(oracle, EulerMaruyama(), levels, x, noise=noise).std())
    mended = float(sample(oracle, PredictorCorrector(EulerMaruyama(), rounds=10), levels, x, noise=noise).std())
    assert abs(mended / want - 1) < abs(plain / want - 1) / 2


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("predictor", [None, EulerMaruyama(), Ancestral()], ids=["none", "euler", "ancestral"])
def test_evaluations_are_counted(rounds: int, predictor: Sampler[None] | None) -> None:
    calls = 0

    def count(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return affine(x, level)

    sampler = PredictorCorrector(predictor, rounds=rounds)
    for n in (1, 2, 5):
        calls = 0
        sample(count, sampler, Trailing().levels(VP(), n), X)
        assert calls == sampler.nfe(n)


def test_a_predictor_lends_what_it_declares() -> None:
    class Picky(Sampler[None]):
        needs, discrete_only, reaches_noise, syncs, dtype, order = ("variance_fraction",), True, False, True, F64, 2

        def nfe(self, n: int) -> None:
            return None

        def step(self, denoise: Any, x: Tensor, t: Level, s: Level, state: None, noise: Any) -> tuple[Tensor, None]:
            return x, state

    made = PredictorCorrector(Picky())
    assert (made.needs, made.discrete_only, made.reaches_noise) == (("variance_fraction",), True, False)
    assert (made.syncs, made.dtype, made.order, made.nfe(3)) == (True, F64, 2, None)
    assert not PredictorCorrector(None).reaches_noise


def test_annealed_langevin_leaves_x_between_levels_and_ends_with_tweedie() -> None:
    t, s = VE().level(0.5), VE().level(0.4)
    still = lambda x: torch.zeros_like(x)  # noqa: E731
    sampler = PredictorCorrector(None, ratio=1e-9)
    x, _ = sampler.step(affine, X, t, s, None, still)
    torch.testing.assert_close(x, X, rtol=1e-9, atol=1e-9)
    x, _ = sampler.step(affine, X, t, VE().clean, None, still)
    torch.testing.assert_close(x, affine(X, t).x0)


def test_a_score_of_zero_does_not_throw_a_sample_away() -> None:
    t, s = VE().level(0.5), VE().level(0.4)
    oracle = GaussianOracle(0.0, 1.0)
    x = torch.zeros(2, 3, dtype=F64)
    found, _ = PredictorCorrector(None).step(oracle, x, t, s, None, torch.ones_like)
    torch.testing.assert_close(found, torch.full_like(x, math.sqrt(2) * s.sigma))


def test_steps_are_the_published_ones_on_paper() -> None:
    """Equation 46 on a VP pair: (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    for t, s in pairwise([Discrete([0.02] * 9).level(float(k)) for k in (9, 8, 7)]):
        want = (2 - math.sqrt(0.98)) * X + 0.02 * (-0.7 * X + 0.1) + math.sqrt(0.02) * Z
        torch.testing.assert_close(one(ReverseDiffusion(), t, s), want)
        drift = -0.5 * math.log(0.98)
        want = (1 + drift) * X + 2 * drift * (-0.7 * X + 0.1) + math.sqrt(2 * drift) * Z
        torch.testing.assert_close(one(EulerMaruyama(), t, s), want)
