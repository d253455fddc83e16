"""What the laws of this package do not test: the classifier, the weights of another run, errors, real networks."""

from __future__ import annotations

import pytest
import torch
from diffkit_guidance.attention import PerturbedAttention
from diffkit_guidance.autoguidance import Autoguidance
from diffkit_guidance.cfgpp import CFGPlusPlus
from diffkit_guidance.classifier import ClassifierGuidance
from diffkit_guidance.interval import Interval

from diffkit import CheckpointError, Level, Model, Shape, build, run, sample, weights_hash
from diffkit.ddpm.unet import UNet
from diffkit.oracles import GaussianOracle, MixtureOracle
from diffkit.testing import fixtures

MIXTURE = MixtureOracle([0.5, 0.2, 0.3], [[0.8, 0.1], [-0.7, 0.4], [0.0, -1.0]], [0.05, 0.2, 0.1])


def log_posterior(x: torch.Tensor, level: Level) -> torch.Tensor:
    """The exact classifier of the mixture."""
    return MIXTURE.responsibilities(x, level).log()


@pytest.mark.parametrize("level", [Level(0.95, 0.3), Level(0.6, 0.8), Level(1.0, 3.0)])
def test_the_exact_classifier_gives_the_conditional_distribution(level: Level) -> None:
    """Bayes: score(x | y) = score(x) + grad log p(y | x); scale 0 and the null class leave the mixture."""
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 0, 1, 3])
    got = ClassifierGuidance.of(log_posterior)(MIXTURE)(x, level, label=label)
    want = MIXTURE(x, level, label=label)
    torch.testing.assert_close(got.x0, want.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(level.add_noise(got.x0, got.eps), x)
    off = ClassifierGuidance.of(log_posterior, scale=0.0)(MIXTURE)(x, level, label=label)
    torch.testing.assert_close(off.x0, MIXTURE(x, level).x0)


def test_a_larger_scale_sharpens_the_posterior() -> None:
    """At scale s the score is that of p(x) p(y | x)^s."""
    level, x, label = Level(0.8, 0.6), torch.tensor([[0.3, 0.2]], dtype=torch.float64), torch.tensor([1])
    plain, once, thrice = (
        ClassifierGuidance.of(log_posterior, scale)(MIXTURE)(x, level, label=label).score for scale in (0.0, 1.0, 3.0)
    )
    torch.testing.assert_close(thrice, plain + 3.0 * (once - plain))
    conditional = ClassifierGuidance.of(log_posterior, conditional=True)(MIXTURE)(x, level, label=label)
    torch.testing.assert_close(conditional.score, 2.0 * once - plain)


def test_a_classifier_guides_in_sampling_without_gradients() -> None:
    levels = [fixtures.TRIG.level(t) for t in (0.95, 0.7, 0.4, 0.1, 0.0)]
    guided = ClassifierGuidance.of(log_posterior)(MIXTURE)
    label = torch.ones(200, dtype=torch.long)
    start = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = sample(lambda x, level: guided(x, level, label=label), build("sampler", "ddim"), levels, start)
    assert (got.mean(0) - torch.tensor([-0.7, 0.4])).abs().max() < 0.1


RECIPE = """
name: worse
data: {name: gaussian}
schedule: linear
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
train: {steps: 2, batch_size: 4, ema: 0.9}
"""


def test_the_weights_of_another_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The worse model is that of the run; other weights than those of `sha256` are refused."""
    folder = tmp_path_factory.mktemp("runs") / "worse"
    trained = run(RECIPE, out=folder)
    model = trained.denoiser()
    guidance = Autoguidance(str(folder), 3.0)
    assert guidance.hash() == weights_hash(model.network)
    assert guidance.hash() != Autoguidance(str(folder), weights="raw").hash()
    level = build("schedule", "linear").level(400.0)
    good = GaussianOracle(0.0, 0.2)
    x = torch.randn(3, *trained.assembly.spec.shape)
    with torch.no_grad():
        got, worse = guidance(good)(x, level), model(x, level)
    torch.testing.assert_close(got.x0, worse.x0 + 3.0 * (good(x, level).x0 - worse.x0))
    pinned = Autoguidance(str(folder), 3.0, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="have the hash"):
        pinned(good)(x, level)


def test_attention_of_the_unet_is_perturbed() -> None:
    torch.manual_seed(0)
    network = UNet(Shape(3, 3, (8, 8)), 8, (1, 2), 1, attention=(4,), initialisation="torch").eval()
    model = Model(network, fixtures.EPS, build("schedule", "linear"))
    level = build("schedule", "linear").level(300.0)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain = model(x, level)
        got = PerturbedAttention(2.0)(model)(x, level)
        torch.testing.assert_close(got.aux["unguided"], plain.x0, rtol=1e-5, atol=1e-5)
        assert (got.x0 - plain.x0).abs().max() > 1e-4
        none = PerturbedAttention(2.0, layers=(99,))(model)(x, level)
        torch.testing.assert_close(none.x0, plain.x0, rtol=1e-5, atol=1e-5)


def test_what_cannot_guide_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Interval(build("guidance", "clip"), low=1.0, high=-1.0)


def test_cfg_pp_without_guidance_is_ddim() -> None:
    levels = [fixtures.TRIG.level(t) for t in (0.9, 0.5, 0.0)]
    oracle, start = GaussianOracle(torch.zeros(1), 1.0), torch.ones(2, 1)
    got = sample(oracle, CFGPlusPlus(), levels, start)
    assert torch.equal(got, sample(oracle, build("sampler", "ddim"), levels, start))
