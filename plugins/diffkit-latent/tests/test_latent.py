"""Codecs, losses and metrics of latent diffusion, as far as no law states them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_latent.adversarial import Adversarial, Critic
from diffkit_latent.codecs import KLVAE, VQVAE, Autoencoder
from diffkit_latent.convolutional import Attention, Convolutional
from diffkit_latent.losses import KL, L1, L2
from diffkit_latent.metrics import psnr, rounded, ssim
from diffkit_latent.perceptual import LINEAR, Perceptual, law_tensors
from diffkit_latent.tiled import Tiled
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit import Codec, DataSpec, Identity, Posterior, RecipeError, Reconstruction, build
from diffkit.data import InMemorySplit, Part
from diffkit.errors import DataError, UsageError
from diffkit.testing import fixtures

PICTURES = fixtures.Pictures()


def pictures(count: int, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train(codec: Autoencoder, x: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(codec.parameters(), 3e-3)
    source, values = torch.Generator().manual_seed(1), []
    for step in range(steps):
        noise = torch.randn(len(x), *codec.spec(PICTURES.spec).shape, generator=source)
        out = codec(x, noise)
        loss = (L2()(out, x, step) + 0.1 * L1()(out, x, step) + sum(out.terms.values())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return values


@pytest.mark.parametrize("codec", [KLVAE, VQVAE])
def test_training_improves_on_the_linear_start(codec: type[Autoencoder]) -> None:
    torch.manual_seed(0)
    x = PICTURES.split("train").x[:64]
    made = codec(PICTURES, width=16, **({"codes": 32} if codec is VQVAE else {}))
    made.fit(PICTURES)
    values = train(made, x, 30)
    assert sum(values[-3:]) < 0.7 * sum(values[:3])
    assert all(bool(p.isfinite().all()) for p in made.parameters())


@dataclass(frozen=True)
class Many(fixtures.Pictures):
    """500 pictures, 3 x 32 x 32, far from 0."""

    @property
    def spec(self) -> DataSpec:
        return DataSpec(3, (32, 32))

    @cached_property
    def _all(self) -> InMemorySplit:
        return InMemorySplit(pictures(500, 32) * torch.linspace(0.2, 1.0, 32) + 3.0)

    def split(self, part: Part) -> InMemorySplit:
        return self._all


@pytest.mark.parametrize("codec", [KLVAE, VQVAE])
def test_the_start_takes_the_memory_of_a_batch(codec: type[Autoencoder]) -> None:
    """The largest tensor is a batch of 16; all examples are 500. The axes are those of the covariance of all."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            self.size = max(self.size, found.numel() if isinstance(found, Tensor) else 0)
            return found

    data = Many()
    x, made = data.split("train").x, codec(data, factor=2, channels=2, width=8)
    with Largest() as largest:
        made.fit(data)
    assert largest.size <= 4 * 16 * x[0].numel()
    patches = nn.functional.pixel_unshuffle(x, 2).double().movedim(1, -1).flatten(0, -2)
    values, axes = torch.linalg.eigh(torch.cov(patches.T))
    up = made.halves.up.weight[:, :, 0, 0].double().detach().T
    wanted = (axes * values.sqrt()).flip(1)[:, :2].T
    assert torch.allclose(up * wanted.sign() * up.sign(), wanted, atol=1e-4)


@pytest.mark.parametrize("size", [(10, 8), (8, 3)])
@pytest.mark.parametrize("codec", [KLVAE(PICTURES, width=8), VQVAE(PICTURES, width=8)])
def test_sides_that_the_factor_does_not_divide_are_refused(codec: Autoencoder, size: tuple[int, int]) -> None:
    wrong, near = next((side, near) for side, near in zip(size, ("8 or 12", "4"), strict=True) if side % 4)
    with pytest.raises(UsageError, match=r"multiples of 4") as encoded:
        codec.encode(torch.zeros(1, 3, *size))
    with pytest.raises(UsageError) as described:
        codec.spec(DataSpec(3, size))
    for error in (encoded.value, described.value):
        assert error.code == "DK083"
        assert error.fix == f"crop or resize {wrong} to {near}"


def test_other_channels_vectors_and_factors_are_refused() -> None:
    with pytest.raises(UsageError, match="images of 3 channels"):
        KLVAE(PICTURES, width=8).spec(DataSpec(1, (8, 8)))
    with pytest.raises(ValueError, match="takes images"):
        KLVAE(fixtures.GaussianData())
    with pytest.raises(ValueError, match="2 multipliers give the factor 2, but factor is 4"):
        KLVAE(PICTURES, multipliers=(1, 2))


@pytest.mark.parametrize("codec", [KLVAE, VQVAE])
def test_attention_that_no_map_receives_is_refused(codec: type[Autoencoder]) -> None:
    with pytest.raises(ValueError, match="attention needs multipliers"):
        codec(PICTURES, attention=(2,))
    with pytest.raises(ValueError, match="attention is 16, but the maps have the sides 8, 4"):
        codec(PICTURES, factor=2, multipliers=(1, 2), attention=(4, 16))
    for attention, layers in (((), 2), ((4,), 5), ((8, 4), 8)):  # one in the middle of each half, then 1 and 2 blocks
        made = codec(PICTURES, factor=2, width=8, multipliers=(1, 2), attention=attention)
        assert sum(isinstance(part, Attention) for part in made.modules()) == layers


def test_few_examples_start_a_codebook() -> None:
    """Each code is the output of the encoder for a patch of one of 32 examples, and these lie at all four positions."""
    torch.manual_seed(0)
    codec = VQVAE(PICTURES, width=8, codes=32)
    counts = list[int]()

    def counted(part: nn.Module, inputs: tuple[Tensor]) -> None:
        counts.append(len(inputs[0]))

    codec.halves.encoder.register_forward_pre_hook(counted)
    codec.fit(PICTURES)
    assert counts == [16, 16]
    with torch.no_grad():
        outputs = codec.encode(PICTURES.split("train").x[::32]).flatten(2)
    gaps = (codec.quantizer.codes[:, None, :, None] - outputs).abs().amax(2).flatten(1)
    near = gaps.min(1)
    assert float(near.values.max()) < 1e-4
    assert len(near.indices.unique()) == 32
    assert len((near.indices % 4).unique()) == 4


def test_at_most_256_examples_start_a_codebook_of_many_codes() -> None:
    codec = VQVAE(PICTURES, factor=4, width=8, codes=1000, multipliers=(1, 1, 1))
    counts = list[int]()
    codec.halves.encoder.register_forward_pre_hook(lambda part, inputs: counts.append(len(inputs[0])))
    codec.fit(PICTURES)
    assert counts == [16] * 16


def test_convolutional_halves_read_no_examples() -> None:
    class Unread(fixtures.Pictures):
        def split(self, part: Part) -> InMemorySplit:
            raise AssertionError(part)

    codec = KLVAE(Unread(), width=8, multipliers=(1, 1, 1))
    before = {name: one.clone() for name, one in codec.state_dict().items()}
    assert codec.fit(Unread()) == ""
    assert all(torch.equal(before[name], one) for name, one in codec.state_dict().items())


def test_nan_of_a_decoder_is_an_error_and_never_an_image() -> None:
    codec = KLVAE(PICTURES, width=8).half()
    with torch.no_grad():
        codec.halves.up.weight.fill_(6e4)
    z = torch.full((1, 4, 2, 2), 9.0, dtype=torch.float16)
    with pytest.raises(UsageError, match="NaN or infinite values in float16"):
        codec.decode(z)
    assert bool(codec.decode(torch.full_like(z, math.nan)).isnan().all())  # what was no number before is not hidden


def test_the_convolutional_halves_are_those_of_latent_diffusion() -> None:
    """The autoencoder of Stable Diffusion, with f = 8 and 4 channels of z, has 83,653,863 parameters."""
    with torch.device("meta"):
        halves = Convolutional(3, 8, 4, 128, (1, 2, 4, 4), 2, ())
    assert sum(p.numel() for p in halves.parameters()) == 83_653_863
    small = Convolutional(3, 8, 4, 8, (1, 2, 2), 1, (1,))
    assert small.encode(torch.zeros(2, 3, 16, 8)).shape == (2, 8, 4, 2)
    assert small.decode(torch.zeros(2, 4, 4, 2)).shape == (2, 3, 16, 8)


def test_kl_needs_a_posterior() -> None:
    x = pictures(1)
    with pytest.raises(UsageError, match="standard deviation") as refused:
        KL()(Reconstruction(x, x, Posterior(x)), x, 0)
    assert refused.value.code == "DK083"


def test_codes_that_are_all_dead_are_replaced_by_different_vectors() -> None:
    torch.manual_seed(0)
    codec = VQVAE(PICTURES, width=8, codes=64, decay=0.0).train()
    with torch.no_grad():
        codec.quantizer.codes.fill_(100.0)
    codec(pictures(32), torch.randn(32, 3, 2, 2))
    assert len(codec.quantizer.codes.unique(dim=0)) > 60
    assert 1.0 <= float(codec.quantizer.perplexity()) <= 64.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("features.2.bias"), "features.2 does not follow"),
        (lambda t: t.update({"features.9.weight": t.pop("features.5.weight")}), "features.9 does not follow"),
        (lambda t: t.clear() or t.update(x=torch.zeros(1)), "no convolutions"),
        (
            lambda t: t.update({"lin1.model.1.weight": torch.ones(1, 5, 1, 1)}),
            r"lin1.model.1.weight has the shape \(1, 5, 1, 1\); this network needs \(1, 4, 1, 1\)",
        ),
        (lambda t: t.pop("lin0.model.1.weight"), "lin0.model.1.weight is absent"),
    ],
)
def test_files_without_a_network_are_refused(tmp_path: Path, change: object, message: str) -> None:
    tensors = dict(law_tensors())
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=message) as refused:
        Perceptual(PICTURES, str(tmp_path / "x.safetensors"))
    assert refused.value.code == "DK302"
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        Perceptual(PICTURES, str(tmp_path / "x.safetensors"))


def test_without_weights_of_lpips_all_channels_count_equally(tmp_path: Path) -> None:
    tensors = {name: one for name, one in law_tensors().items() if not name.startswith("lin")}
    ones = {LINEAR.format(index): torch.ones(1, width, 1, 1) for index, width in enumerate((5, 4))}
    found = []
    for number, content in enumerate((tensors, {**tensors, **ones})):
        save_file(content, tmp_path / f"{number}.safetensors")
        x, y = pictures(2), pictures(2, seed=1)
        loss = Perceptual(PICTURES, str(tmp_path / f"{number}.safetensors"))
        found.append(loss(Reconstruction(y, y, Posterior(y)), x, 0))
    assert torch.equal(*found)


def test_a_critic_learns_to_separate_and_the_codec_to_please_it() -> None:
    torch.manual_seed(0)
    loss = Adversarial(PICTURES, layers=1, width=8)
    optimizer = torch.optim.Adam(loss.critic.parameters(), 1e-2)
    smooth, x = torch.zeros(8, 3, 16, 16), pictures(8, 16)
    out = Reconstruction(smooth, smooth, Posterior(smooth))
    for _ in range(15):
        each = loss.critic_loss(out, x, 0)
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
    assert float(each.detach().mean()) < 0.3
    alike = Reconstruction(x, x, Posterior(x))
    assert float(loss(alike, x, 0).mean()) < float(loss(out, x, 0).mean())


def test_the_critic_judges_patches_of_70_pixels() -> None:
    critic = Critic(1, 4, 3).double()
    x = torch.zeros(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    for layer in critic:  # without statistics of the whole map
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda h: h  # type: ignore[method-assign, assignment]
    judged = critic(x)
    (gradient,) = torch.autograd.grad(judged[0, 0, judged.shape[2] // 2, judged.shape[3] // 2], x)
    rows = gradient[0, 0].abs().sum(1).nonzero()[:, 0]
    assert int(rows.max() - rows.min()) + 1 == 70


@dataclass(frozen=True)
class Sized(fixtures.Pictures):
    """Data of one shape, whose examples are not used."""

    shape: tuple[int, ...] = (3, 8, 8)

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.shape[0], self.shape[1:], bounded=True)


def test_a_discriminator_of_too_many_layers_is_refused() -> None:
    """A size is refused exactly if a discriminator fails on it."""
    for layers, side in product((1, 2, 3), (6, 11, 12, 23, 24)):
        try:
            Critic(3, 8, layers)(torch.zeros(1, 3, side, 50))
        except RuntimeError:
            with pytest.raises(ValueError, match=rf"layers must be at most [12] .* {side} x 50 .* got {layers}"):
                Adversarial(Sized(shape=(3, side, 50)), layers=layers, width=8)
        else:
            Adversarial(Sized(shape=(3, side, 50)), layers=layers, width=8)
    with pytest.raises(ValueError, match="at most 2 for images of 23 x 64 pixels, got 3"):
        Adversarial(Sized(shape=(3, 23, 64)), width=8)
    with pytest.raises(ValueError, match="at least 6 x 6 pixels, got 8 x 5"):
        Adversarial(Sized(shape=(3, 8, 5)), layers=1, width=8)
    with pytest.raises(ValueError, match=r"takes images, but the data has shape \(2,\)"):
        Adversarial(Sized(shape=(2,)), layers=1, width=8)
    with pytest.raises(RecipeError, match="layers must be at most 1 for images of 8 x 8 pixels"):
        build("reconstruction-loss", "adversarial", data=PICTURES)


def test_images_that_a_network_of_features_cannot_read_are_refused(tmp_path: Path) -> None:
    tensors = law_tensors() | {"features.8.weight": torch.ones(3, 4, 3, 3), "features.8.bias": torch.zeros(3)}
    tensors["lin2.model.1.weight"] = torch.ones(1, 3, 1, 1)
    file = str(tmp_path / "x.safetensors")
    save_file(tensors, file)
    for shape in ((1, 4, 4), (3, 4, 9)):
        loss = Perceptual(Sized(shape=shape), file)
        x = torch.zeros(2, *shape)
        assert loss(Reconstruction(x, x, Posterior(x)), x, 0).tolist() == [0.0, 0.0]
    for shape in ((2, 8, 8), (4, 8, 8), (3,), (3, 8)):
        with pytest.raises(ValueError, match="takes images of 1 or 3 channels, but the data has shape"):
            Perceptual(Sized(shape=shape), file)
    with pytest.raises(
        ValueError, match="halves each side 2 times, so images must have at least 4 x 4 pixels, got 8 x 3"
    ):
        Perceptual(Sized(shape=(3, 8, 3)), file)


def test_psnr_of_a_constant_error_and_of_equal_images() -> None:
    x = rounded(pictures(2, 16))
    assert psnr(x, x + 0.1).tolist() == pytest.approx([20.0, 20.0])
    assert psnr(x, x).tolist() == [100.0, 100.0]
    assert rounded(torch.tensor([-1.2, -1.0, 0.0, 1.0])).tolist() == pytest.approx([0.0, 0.0, 128 / 255, 1.0])


def test_ssim_of_constant_images_is_the_term_of_brightness() -> None:
    x, y = torch.full((1, 1, 16, 16), 0.3, dtype=torch.float64), torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
    assert float(ssim(x, y)) == pytest.approx((2 * 0.15 + 1e-4) / (0.09 + 0.25 + 1e-4), abs=1e-9)


def test_ssim_equals_its_formula_with_the_windows_of_scipy() -> None:
    x, y = (rounded(pictures(1, 24, seed))[0] for seed in (3, 4))
    y = 0.6 * x + 0.4 * y

    def blurred(values: Tensor) -> Tensor:
        each = [gaussian_filter(one.numpy(), 1.5, truncate=5 / 1.5) for one in values]
        return torch.stack([torch.from_numpy(one)[5:-5, 5:-5] for one in each])

    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    each = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(ssim(x[None], y[None])) == pytest.approx(float(each.mean()), abs=1e-9)
    assert float(ssim(x[None], x[None])) == pytest.approx(1.0)
    assert 0 < float(ssim(x[None, :, :8, :7], y[None, :, :8, :7])) < 1


def test_tiles_of_codecs_that_they_would_change_are_refused() -> None:
    class Normalized(nn.Module, Codec):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 3)

        def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
            found: Tensor = self.norm(x)
            return found

        def decode(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(RecipeError, match=r"Normalized normalizes over whole maps.*Staged"):
        build("codec", "tiled", inner=Normalized())
    with pytest.raises(RecipeError, match="at most half of tile, got 5 and 8"):
        build("codec", "tiled", inner="affine", tile=8, overlap=5)
    with pytest.raises(ValueError, match="tiles are pieces of images"):
        Tiled(Identity()).spec(DataSpec(2, ()))
    with pytest.raises(UsageError, match="NaN or infinite values") as caught:
        Tiled(build("codec", "affine", scale=1e-30), 8, 4).decode(torch.full((1, 3, 16, 16), 1e30))
    assert caught.value.code == "DK083"
