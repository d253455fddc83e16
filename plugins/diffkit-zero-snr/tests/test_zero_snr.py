"""Algorithm 1 against its closed form and diffusers, what it refuses, and the rescaled guidance."""

from __future__ import annotations

import pytest
import torch
from diffkit_zero_snr.guidance import Rescale
from diffkit_zero_snr.schedule import ZeroSNR
from hypothesis import given, strategies as st
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, RecipeError, Schedule, Shape, load_recipe, sample
from diffkit.basics.grid import Trailing
from diffkit.basics.guidance import ClassifierFree
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear, ScaledLinear
from diffkit.testing import GaussianOracle
from diffkit.testing.fixtures import TRIG

F64 = torch.float64


@given(st.integers(2, 1000), st.sampled_from([Linear, ScaledLinear]))
def test_the_roots_are_shifted_and_scaled(steps: int, inner: type[Linear]) -> None:
    """Identity A10: r'_t = (r_t - r_T) r_1 / (r_1 - r_T), alpha_bar_T = 0, beta_T = 1."""
    before, after = inner(steps), ZeroSNR(inner(steps))
    r = [before.level(float(t)).alpha for t in range(steps + 1)]
    for t in {1, 2, steps // 2 or 1, steps - 1}:
        want = (r[t] - r[-1]) * r[1] / (r[1] - r[-1])
        assert after.level(float(t)).alpha == pytest.approx(want, rel=1e-9)
    assert after.level(1.0).alpha == pytest.approx(before.level(1.0).alpha, rel=1e-15)
    assert after.noise == Level(0.0, 1.0)
    assert float(after.betas[-1]) == 1.0
    assert after.level(0.0) == Level(1.0, 0.0)


def test_diffusers_agrees_within_its_float32() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    for inner in (Linear(), ScaledLinear()):
        reference = rescale_zero_terminal_snr(inner.betas.float())
        torch.testing.assert_close(ZeroSNR(inner).betas.float(), reference, rtol=2e-3, atol=2e-6)


def test_one_that_ends_in_noise_stays_as_it_is() -> None:
    once = ZeroSNR(ScaledLinear())
    torch.testing.assert_close(ZeroSNR(once).betas, once.betas, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("inner", "message"), [(TRIG, "discrete"), (Linear(steps=1), "two steps")])
def test_what_cannot_be_stretched_is_refused(inner: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroSNR(inner)


def test_the_mean_of_the_data_survives() -> None:
    """Pains 3, 4; identity D8: from N(0, I) a schedule that ends early loses m alpha_T^2 S / S_T of the mean m."""
    m, lost = 0.8, {}
    oracle = GaussianOracle(torch.full((1,), m, dtype=F64), 1.0)
    noise = torch.randn(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()
    for name, curve in {"scaled-linear": ScaledLinear(), "zero-snr": ZeroSNR(ScaledLinear())}.items():
        x = sample(oracle, Ancestral(), Trailing().levels(curve, 200), noise, noise=torch.zeros_like)
        lost[name] = m - float(x.mean())
    assert lost["scaled-linear"] == pytest.approx(m * ScaledLinear().noise.alpha ** 2, rel=1e-6)
    assert lost["zero-snr"] == pytest.approx(0.0, abs=1e-9)


RECIPE = """
name: zero
data: {name: gaussian}
schedule: {name: zero-snr, inner: linear}
parameterization: PARAMETERIZATION
network: {name: mlp, width: 16}
objective: simple
train: {steps: 10}
sample: {sampler: SAMPLER, grid: trailing, steps: 10}
"""


def test_eps_is_refused_when_the_recipe_is_read(tmp_path: object) -> None:
    """Pains 4: with the reason, before any computation; x0 is accepted."""
    text = RECIPE.replace("SAMPLER", "ancestral")
    with pytest.raises(RecipeError) as caught:
        load_recipe(text.replace("PARAMETERIZATION", "eps"))
    (fault,) = caught.value.errors
    assert fault.code == "DK110"
    assert "zero-snr reaches alpha = 0" in fault.message
    assert fault.where is not None
    assert fault.where.path.startswith("parameterization")
    assert "x0" in (fault.fix or "")
    assert not load_recipe(text.replace("PARAMETERIZATION", "x0")).warnings


def test_the_recipe_is_valid() -> None:
    assert not load_recipe("digits-zero-snr").warnings


def labelled(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
    """Two classes and none, whose x0 differ in size."""
    size = torch.tensor([1.0, 2.0, 0.5], dtype=F64)[cond.get("label", torch.full((len(x),), 2))]
    return Estimate.from_x0(x, level, size[:, None] * torch.tensor([[0.5, -0.5, 1.0]], dtype=F64))


LABEL, AT = torch.tensor([0, 1, 2]), Level(0.6, 0.8)
X = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
CFG = ClassifierFree(Shape(3, 3, (), 2), 7.5)


def test_the_deviation_before_guidance_is_kept() -> None:
    """Equations 15 and 16: phi blends the rescaled and the guided estimate."""
    plain, guided = labelled(X, AT, label=LABEL), CFG(labelled)(X, AT, label=LABEL)
    assert (guided.x0.std(1) / plain.x0.std(1))[:2].min() > 2
    full = Rescale(CFG, 1.0)(labelled)(X, AT, label=LABEL)
    torch.testing.assert_close(full.x0.std(1), plain.x0.std(1))
    half = Rescale(CFG, 0.4)(labelled)(X, AT, label=LABEL)
    torch.testing.assert_close(half.x0, 0.4 * full.x0 + 0.6 * guided.x0)
    torch.testing.assert_close(AT.add_noise(half.x0, half.eps), X)
    none = Rescale(CFG, 0.0)(labelled)(X, AT, label=LABEL)
    torch.testing.assert_close(none.x0, guided.x0)


def test_it_costs_no_evaluation_more_than_what_it_rescales() -> None:
    calls = 0

    def counted(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal calls
        calls += len(x) // len(X)
        return labelled(x, level, **cond)

    Rescale(CFG)(counted)(X, AT, label=LABEL)
    assert calls == 2


def test_any_guidance_can_be_rescaled() -> None:
    class Elsewhere(Guidance):
        """Evaluates at another level only."""

        def __call__(self, denoise: Denoiser) -> Denoiser:
            def elsewhere(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
                return denoise(x, Level(level.alpha, level.sigma), **cond).with_x0(4.0 * labelled(x, level).x0)

            return elsewhere

    found = Rescale(Elsewhere(), 1.0)(labelled)(X, AT, label=LABEL)
    torch.testing.assert_close(found.x0.std(1), labelled(X, AT, label=LABEL).x0.std(1))
    assert not Rescale(Elsewhere()).needs_null
    assert Rescale(CFG).needs_null


def test_an_estimate_without_contrast_is_left_alone() -> None:
    def flat(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        return Estimate.from_x0(x, level, torch.full_like(x, 0.3))

    found = Rescale(CFG)(flat)(X, AT, label=LABEL)
    torch.testing.assert_close(found.x0, torch.full_like(X, 0.3))
