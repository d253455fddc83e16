"""Autoencoders of diffusers as codecs: equal to diffusers, whole and in tiles; written back; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.folder import STEM
from diffkit_diffusers.vae import DiffusersVAE
from torch import Tensor

from diffkit import CheckpointError, DataSpec, RecipeError, UsageError, build, load_recipe, open_run, run
from diffkit.cli.main import main

KL: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "shift_factor": 0.1,
}
SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 2, 2),
    "num_decoder_blocks": (2, 2, 1),
    "scaling_factor": 0.5,
}
CLASSES = {"AutoencoderKL": KL, "AutoencoderTiny": SMALL}
X = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1


def model(name: str = "AutoencoderKL", **changes: Any) -> Any:
    torch.manual_seed(0)
    made = getattr(diffusers, name)(**CLASSES[name] | changes).eval().requires_grad_(False)
    for weight in made.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    return made


@pytest.fixture(scope="module", params=CLASSES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of diffusers and the folder that it wrote."""
    made, folder = model(request.param), tmp_path_factory.mktemp("vae")
    made.save_pretrained(folder)
    return made, folder


def codec(folder: Path, **options: Any) -> DiffusersVAE:
    made = build("codec", "diffusers-vae", folder=str(folder), **options)
    assert isinstance(made, DiffusersVAE)
    return made


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_codes_and_images_are_those_of_diffusers(pair: tuple[Any, Path]) -> None:
    theirs, folder = pair
    ours = codec(folder)
    config, encoded = theirs.config, theirs.encode(X)
    shift, scale = config.shift_factor or 0.0, config.scaling_factor
    mean = encoded.latents if ours.deterministic else encoded.latent_dist.mean
    assert difference(ours.encode(X), (mean - shift) * scale) < 1e-6
    noise = torch.randn_like(mean)
    spread = torch.zeros_like(mean) if ours.deterministic else encoded.latent_dist.std
    assert difference(ours.encode(X, noise), (mean + spread * noise - shift) * scale) < 1e-6
    z = torch.randn_like(mean)
    assert difference(ours.decode(z), theirs.decode(z / scale + shift).sample) < 1e-6 * theirs.decode(z).sample.std()
    assert ours.spec(DataSpec(3, (96, 128), 5, bounded=True, bins=256)) == DataSpec(4, (24, 32), 5)


def test_tiles_give_the_whole_image_if_they_overlap(pair: tuple[Any, Path]) -> None:
    """Without overlap the error beside a seam is many times that inside the tiles."""
    _, folder = pair
    whole, z = codec(folder), torch.randn(2, 4, 24, 32, generator=torch.Generator().manual_seed(2))
    image, tiled = whole.decode(z), codec(folder, tile=64, overlap=32)
    assert difference(tiled.decode(z), image) < 1e-5
    ours, theirs = tiled.posterior(X), whole.posterior(X)
    assert difference(ours.mean, theirs.mean) < 1e-5
    assert (ours.std is None) == whole.deterministic == (theirs.std is None)
    if ours.std is not None and theirs.std is not None:
        assert difference(ours.std, theirs.std) < 1e-5
    around: Any = build("codec", "tiled", inner=whole, tile=16, overlap=8)
    assert difference(around.decode(z), image) < 1e-5
    assert difference(around.posterior(X).joined(), theirs.joined()) < 1e-5
    cut = (codec(folder, tile=64, overlap=0).decode(z) - image).abs()
    seam = torch.cat([cut[..., 60:68, :].flatten(), cut[..., 60:68].flatten()])
    assert seam.mean() > 4 * cut[..., 16:48, 16:48].mean()


def test_statistics_per_channel_are_applied(tmp_path: Path) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.4], [0.5, 1.0, 1.5, 2.0]
    theirs = model(shift_factor=None, latents_mean=mean, latents_std=std, scaling_factor=0.7)
    theirs.save_pretrained(tmp_path)
    plain = theirs.encode(X).latent_dist.mean
    wanted = (plain - torch.tensor(mean).view(-1, 1, 1)) * 0.7 / torch.tensor(std).view(-1, 1, 1)
    assert difference(codec(tmp_path).encode(X), wanted) < 1e-6
    assert difference(codec(tmp_path).decode(wanted), theirs.decode(plain).sample) < 1e-5


def test_every_form_of_safetensors_is_read_and_no_pickle(tmp_path: Path) -> None:
    theirs = model()
    theirs.save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    assert len(list((tmp_path / "vae").glob("*-of-*"))) > 1
    assert difference(codec(tmp_path / "vae").encode(X), codec_of(theirs, tmp_path / "single").encode(X)) == 0
    theirs.save_pretrained(tmp_path / "half", variant="fp16")
    (tmp_path / "half" / "model_index.json").write_text("{}")
    codec(tmp_path / "half", variant="fp16")
    (tmp_path / "model_index.json").write_text("{}")
    codec(tmp_path)  # the folder vae of a pipeline
    theirs.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    with pytest.raises(UsageError, match="pickle") as caught:
        DiffusersVAE(str(tmp_path / "pickle"))
    assert caught.value.code == "DK080"


def codec_of(theirs: Any, folder: Path) -> DiffusersVAE:
    theirs.save_pretrained(folder)
    return codec(folder)


def test_sides_that_are_no_multiple_are_refused_with_the_two_nearest(pair: tuple[Any, Path]) -> None:
    ours = codec(pair[1])
    with pytest.raises(UsageError, match="multiples of 4, got 96 x 126; fix: crop or resize 126 to 124 or 128"):
        ours.encode(X[..., :126])
    with pytest.raises(UsageError, match="resize 3 to 4") as caught:
        ours.spec(DataSpec(3, (3, 8)))
    assert caught.value.code == "DK083"
    with pytest.raises(UsageError, match="images of 3 channels"):
        ours.spec(DataSpec(1, (8, 8)))
    with pytest.raises(RecipeError, match="multiples of 4"):
        codec(pair[1], tile=62)
    with pytest.raises(RecipeError, match="at most tile / 2"):
        codec(pair[1], tile=64, overlap=48)


def test_an_autoencoder_whose_output_has_other_channels_is_refused(tmp_path: Path) -> None:
    model(out_channels=1).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="takes images of 3 channels and returns images of 1") as caught:
        DiffusersVAE(str(tmp_path))
    assert caught.value.code == "DK080"


def test_nan_in_half_precision_is_an_error_and_never_black(tmp_path: Path) -> None:
    theirs = model()
    theirs.decoder.conv_in.weight.mul_(1e7)
    theirs.save_pretrained(tmp_path)
    z = torch.randn(1, 4, 8, 8)
    assert codec(tmp_path).decode(z).isfinite().all()
    for options in ({}, {"tile": 16, "overlap": 4}):
        with pytest.raises(UsageError, match="NaN or infinite values in float16; fix: set dtype: float32") as caught:
            codec(tmp_path, dtype="float16", **options).decode(z)
        assert caught.value.code == "DK083"
    with torch.autocast("cpu", torch.bfloat16):  # a low precision of the caller does not reach the autoencoder
        assert torch.equal(codec(tmp_path).decode(z), codec(tmp_path).decode(z))
        assert difference(codec(tmp_path).decode(z), theirs.float().decode(z / 0.18215 + 0.1).sample.float()) > 0
    low = codec_of(model(), tmp_path / "usual")
    rounded = codec(tmp_path / "usual", dtype="bfloat16").decode(z)
    assert rounded.dtype == torch.float32
    assert 0 < difference(rounded, low.decode(z)) < 0.2 * low.decode(z).abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "holds a VQModel"),
        ({"brand_new": 1}, "no option 'brand_new'"),
        ({"down_block_types": ["NoBlock"] * 3}, "does not accept the config"),
        ({"scaling_factor": None}, "scaling_factor is None"),
        ({"scaling_factor": "much"}, "scaling_factor is much"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std is .*0.0"),
        ({"latent_channels": 8}, "do not fit its config"),
    ],
)
def test_a_folder_of_another_model_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UsageError, match=message) as caught:
        DiffusersVAE(str(tmp_path))
    assert caught.value.code == "DK080"


def test_a_latent_run_trains_samples_and_exports_its_autoencoder(tmp_path: Path) -> None:
    theirs = model("AutoencoderTiny", in_channels=1, out_channels=1)
    theirs.save_pretrained(tmp_path / "vae")
    text = f"""
name: latent
data: digits
codec: {{name: diffusers-vae, folder: {tmp_path / "vae"}}}
schedule: linear
parameterization: eps
network: {{name: unet, channels: 8, multipliers: [1], blocks: 1, attention: [], groups: 4}}
objective: simple
train: {{steps: 2, batch_size: 4, ema: []}}
sample: {{sampler: ddim, steps: 2, count: 2}}
"""
    with pytest.raises(RecipeError, match="multiples of 4, got 6 x 6") as caught:
        load_recipe(text.replace("data: digits", "data: {name: shape-only, channels: 1, size: [6, 6]}"))
    place = caught.value.errors[0].where
    assert (place.line if place else None) == 4
    finished = run(load_recipe(text), tmp_path / "run")
    assert finished.sample(2, steps=2).shape == (2, 1, 8, 8)
    assert main(["export-vae", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    again = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "out")
    for name, weight in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert again.config.scaling_factor == 0.5
    assert (tmp_path / "out" / f"{STEM}.safetensors").is_file()
    shutil.rmtree(tmp_path / "vae")  # the run holds the weights and the configuration
    alone = open_run(tmp_path / "run")
    assert alone.assembly.spec.shape == (4, 2, 2)
    assert torch.equal(alone.sample(2, steps=2), finished.sample(2, steps=2))
    stored = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").read_text())
    record = alone.assembly.codec.record()
    assert record is not None
    assert stored["meta"]["codec"] == record.sha256
    model("AutoencoderTiny", in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    run(load_recipe(text), tmp_path / "run")  # the same again
    model("AutoencoderTiny", in_channels=1, out_channels=1, scaling_factor=1.0).save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="source of the codec has changed") as scaled:
        run(load_recipe(text), tmp_path / "run")
    assert scaled.value.notes == ("scaling_factor: 0.5 then, 1.0 now",)
    other = model("AutoencoderTiny", in_channels=1, out_channels=1)
    other.encoder.layers[0].bias.add_(1.0)
    other.save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="source of the codec has changed") as changed:
        run(load_recipe(text), tmp_path / "run")
    assert changed.value.code == "DK607"
    assert record.sha256 in changed.value.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["auto", "per-channel", 1.0])
def test_an_export_has_the_scale_of_the_run(tmp_path: Path, scale: str | float) -> None:
    """A U-Net that was trained on scaled codes of an autoencoder gets its latents from the exported one."""
    pytest.importorskip("diffkit_latent")
    model(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    text = """
data: digits
schedule: linear
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: [], groups: 4}
train: {steps: 0, ema: []}
sample: {sampler: ddim, steps: 2, count: 2}
"""
    source = f"name: source\ncodec: {{name: diffusers-vae, folder: {tmp_path / 'vae'}}}" + text
    run(load_recipe(source), tmp_path / "source")
    codec = f"name: scaled\ncodec: {{name: trained, run: {tmp_path / 'source'}, scale: {scale}}}"
    made = run(load_recipe(codec + text), tmp_path / "run").trained().codec
    assert main(["export-vae", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out").eval()
    config, x = theirs.config, torch.rand(3, 1, 16, 16) * 2 - 1
    mean, std = (torch.tensor(config[f"latents_{n}"] or default) for n, default in (("mean", [0.0]), ("std", [1.0])))
    with torch.no_grad():
        latents = theirs.encode(x).latent_dist.mean
        shifted = latents - mean.view(1, -1, 1, 1) - (config.shift_factor or 0.0)
        found = shifted * config.scaling_factor / std.view(1, -1, 1, 1)
        wanted = made.encode(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
