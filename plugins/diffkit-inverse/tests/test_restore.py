"""`restore` and `diffkit restore` on a small run of colour pictures, and what bad input gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffkit_inverse import restore
from diffkit_inverse.command import restore as command
from diffkit_inverse.operator import Blur, Decoded, Downsample
from PIL import Image

import diffkit
from diffkit import ArgumentError, Codec, Estimate, Level, Run, UsageError
from diffkit.testing import GaussianOracle

pytestmark = pytest.mark.xdist_group("restore")

SIZE = 16


def trained(folder: Path, **sections: Any) -> Run:
    """A run of two steps on 24 random pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=pixels)
    guidance = [] if "codec" in sections else ["clip"]
    recipe = {
        "name": "pictures",
        "data": {"name": "arrays", "path": str(folder / "pictures.npz")},
        "schedule": {"name": "linear", "steps": 50},
        "parameterization": "x0",
        "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
        "train": {"steps": 2, "batch_size": 4},
        "sample": {"sampler": "ancestral", "grid": "trailing", "steps": 4, "count": 1, "guidance": guidance},
    }
    return diffkit.run(recipe | sections, folder / "run", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("inverse"))


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the codes of an autoencoder."""
    return trained(tmp_path_factory.mktemp("latent"), codec={"name": "kl-vae", "factor": 2, "width": 8})


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def mask() -> torch.Tensor:
    kept = torch.ones(SIZE, SIZE)
    kept[4:9, 3:12] = 0
    return kept


@pytest.mark.parametrize("method", ["pgdm", "ddnm", "dps", "repaint", "blend"])
def test_pixels_outside_of_the_hole_are_bitwise_equal(
    run: Run, picture: torch.Tensor, mask: torch.Tensor, method: str
) -> None:
    got = restore(run, picture, "mask", mask=mask, method=method, count=3)
    kept = (mask > 0.5).expand_as(got.x)
    assert torch.equal(got.x[kept], picture.expand_as(got.x)[kept])
    assert got.x[~kept].std() > 1e-3
    assert got.error == 0.0
    again = restore(run, picture, "mask", mask=mask, method=method, count=1)
    torch.testing.assert_close(again.x, got.x[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("forward", [Downsample(4), Blur(1.0), "grey", "jpeg"])
def test_samples_fit_the_measurement(run: Run, picture: torch.Tensor, forward: Any) -> None:
    y = (diffkit.build("operator", forward) if isinstance(forward, str) else forward)(0.5 * picture)
    fitted = restore(run, y, forward, method="ddnm", count=2)
    free = restore(run, y, forward, method=diffkit.build("guidance", "dps", forward="grey", scale=0.0), count=2)
    assert fitted.x.shape == (2, 3, SIZE, SIZE)
    assert fitted.error < (0.3 if forward == "jpeg" else 0.1) * free.error


@pytest.mark.parametrize("method", ["ddnm", *(pytest.param(one, marks=pytest.mark.slow) for one in ("pgdm", "dps"))])
def test_latents_are_measured_after_decoding(
    latent: Run, picture: torch.Tensor, mask: torch.Tensor, method: str
) -> None:
    got = restore(latent, picture, "mask", mask=mask, method=method, count=2)
    kept = (mask > 0.5).expand_as(got.x)
    assert torch.equal(got.x[kept], picture.expand_as(got.x)[kept])


@pytest.mark.slow
def test_samples_of_latents_fit_the_measurement(latent: Run) -> None:
    y = torch.full((3, 4, 4), 0.5)
    fitted = restore(latent, y, Downsample(4), method="ddnm", count=2)
    free = restore(latent, y, Downsample(4), method=diffkit.build("guidance", "dps", forward="grey", scale=0.0))
    assert fitted.x.shape == (2, 3, SIZE, SIZE)
    assert fitted.error < 0.5 * free.error


class Turned(Codec):
    """Permuted pixels with other signs, an orthogonal map."""

    def encode(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return -x.flip(2, 3)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return -z.flip(2, 3)


@pytest.mark.parametrize("name", ["pgdm", "ddnm", "dps"])
def test_an_orthogonal_codec_changes_nothing(picture: torch.Tensor, name: str) -> None:
    """The estimate of latents, decoded, is that of pixels: each method is the same in every orthonormal basis."""
    codec, level, prior = Turned(), Level(0.8, 0.6), GaussianOracle(torch.full((3, SIZE, SIZE), 0.2), 0.5)
    x = 0.8 * picture + 0.6 * picture.flip(1)
    for forward in (Downsample(4), Blur(1.0)):
        y = forward(picture)
        wanted = diffkit.build("guidance", name, forward=forward)(prior)(x, level, measurement=y)
        behind = diffkit.build("guidance", name, forward=Decoded(forward, codec))

        def of_latents(z: torch.Tensor, level: Level, /, **cond: torch.Tensor) -> Estimate:
            return Estimate.from_x0(z, level, codec.encode(prior(codec.decode(z), level).x0))

        found = behind(of_latents)(codec.encode(x), level, measurement=y)
        torch.testing.assert_close(codec.decode(found.x0), wanted.x0, rtol=0, atol=1e-4)


def test_what_is_impossible_in_latents_is_one_error(
    latent: Run, picture: torch.Tensor, mask: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"measurement": picture, "forward": "mask", "mask": mask}
    for options, message in (
        ({"method": "blend"}, "blend holds known pixels.*samples latents"),
        ({"method": "repaint"}, "repaint holds known pixels.*samples latents"),
        ({"method": "pgdm", "noise": 0.1}, "only with a linear operator, and decoded latents are not linear"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            restore(latent, **given, **options)
        assert (error.value.code, bool(error.value.fix)) == ("DK030", True)
    monkeypatch.setattr(type(latent.trained().codec), "decode", lambda codec, z: z.detach())
    with pytest.raises(UsageError, match=r"the decoder of the codec KLVAE has no gradient.*ddnm"):
        restore(latent, **given, method="dps")


def test_steps_are_reported_and_noise_reaches_the_method(run: Run, picture: torch.Tensor) -> None:
    seen: list[int] = []
    y = Downsample(2)(picture)
    got = restore(run, y, Downsample(2), method="ddnm", count=2, on_step=lambda step: seen.append(step.index))
    assert (seen, got.nfe) == ([1, 2, 3, 4], 4)
    assert restore(run, y, Downsample(2), method="ddnm", count=2, noise=5.0).error > 2 * got.error


BAD: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], dict[str, Any]], str]] = {
    "size": (lambda x, m: {"measurement": x[:, :, :8], "forward": "mask", "mask": m}, r"\(3, 8, 16\).*\(3, 16, 16\)"),
    "channels": (lambda x, m: {"measurement": x[:, :1], "forward": "mask", "mask": m}, r"\(1, 16, 16\)"),
    "mask size": (lambda x, m: {"measurement": x, "forward": "mask", "mask": m[:8]}, "8x16 pixels.*16x16"),
    "mask values": (lambda x, m: {"measurement": x, "forward": "mask", "mask": 0.5 * m}, "other than 0 and 1"),
    "mask of ones": (lambda x, m: {"measurement": x, "forward": "mask", "mask": torch.ones_like(m)}, "everywhere 1"),
    "mask of zeros": (lambda x, m: {"measurement": x, "forward": "mask", "mask": 0 * m}, "everywhere 0"),
    "no mask": (lambda x, m: {"measurement": x, "forward": "mask"}, "a mask is missing"),
    "a mask too many": (lambda x, m: {"measurement": x, "forward": Blur(), "mask": m}, "a mask is given"),
    "factor": (lambda x, m: {"measurement": x, "forward": Downsample(3)}, "squares of 3 pixels.*factor of 2, 4, 8"),
    "method": (lambda x, m: {"measurement": x, "forward": Blur(), "method": "magic"}, "no method 'magic'.*pgdm"),
    "repaint": (lambda x, m: {"measurement": x, "forward": Blur(), "method": "repaint"}, "repaint holds known pixels"),
    "noise": (lambda x, m: {"measurement": x, "forward": Blur(), "noise": -1.0}, "0 or more"),
    "nan": (lambda x, m: {"measurement": x * torch.nan, "forward": Blur()}, "NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_with_a_fix(run: Run, picture: torch.Tensor, mask: torch.Tensor, name: str) -> None:
    made, message = BAD[name]
    with pytest.raises(UsageError, match=message) as error:
        restore(run, **made(picture, mask))
    assert error.value.code == "DK030"
    assert error.value.fix


def save(path: Path, x: torch.Tensor) -> Path:
    pixels = x.add(1).mul(127.5).round().clamp(0, 255).byte().movedim(0, -1).numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def call(*arguments: object) -> str:
    """The output of `diffkit restore`; an error is raised."""
    done = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_inpainting_by_the_command(run: Run, picture: torch.Tensor, mask: torch.Tensor, tmp_path: Path) -> None:
    image = save(tmp_path / "in.png", picture[0])
    hole = save(tmp_path / "hole.png", 1.0 - 2.0 * mask[None])
    place = run.directory.path
    text = call(
        *(place, "--image", image, "--operator", "inpaint", "--mask", hole, "--count", 2, "--degrade"),
        *("-o", tmp_path / "out", "--device", "cpu"),
    )
    assert "comparison.png   2 samples, 4 evaluations each" in text
    assert all(
        part in text for part in ("error of the measurement: 0 ", "dB of the mean of 2 samples", "restoring 2/2")
    )
    with Image.open(image) as given, Image.open(tmp_path / "out" / "restored-2.png") as got:
        before, after = np.asarray(given), np.asarray(got)
    kept = mask.numpy() > 0.5
    assert np.array_equal(before[kept], after[kept])
    assert not np.array_equal(before[~kept], after[~kept])
    with Image.open(tmp_path / "out" / "comparison.png") as compared:
        assert compared.width == 5 * 112 + 4 * 6, "before, mean, two samples, reference"


def test_super_resolution_of_a_small_picture_by_the_command(run: Run, picture: torch.Tensor, tmp_path: Path) -> None:
    image = save(tmp_path / "small.png", Downsample(4)(picture)[0])
    place = run.directory.path
    text = call(
        place, "--image", image, "--operator", "super-resolution,factor=4", "--count", 1, "-q", "--device", "cpu"
    )
    out = run.directory.samples / "restored-small-super-resolution"
    assert str(out / "comparison.png") in text
    assert not any(part in text for part in ("PSNR", "restoring"))
    with Image.open(out / "restored-1.png") as got:
        assert got.size == (SIZE, SIZE)


def test_a_picture_is_restored_under_its_conditions(tmp_path: Path, picture: torch.Tensor) -> None:
    """The network reads a class and a caption; without them both are null."""
    rows = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        images=rows.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8),
        labels=np.arange(24) % 3,
        captions=np.array([f"picture {i % 3}" for i in range(24)]),
    )
    recipe = {
        "name": "captioned",
        "data": {
            "name": "arrays",
            "path": str(tmp_path / "x.npz"),
            "labels": "labels",
            "conditions": {"text": "captions"},
        },
        "conditions": {"label": "label", "text": {"name": "text", "width": 8, "depth": 1, "heads": 1}},
        "schedule": {"name": "linear", "steps": 50},
        "parameterization": "x0",
        "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": [8]},
        "train": {"steps": 5, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.05}},
        "sample": {"sampler": "ancestral", "grid": "trailing", "steps": 3, "count": 1},
    }
    made = diffkit.run(recipe, tmp_path / "run", device="cpu", quiet=True)
    y = Downsample(2)(picture[..., :8, :8])
    stated = {"label": 1, "text": "picture 1"}
    free, whole, other = (
        restore(made, y, Downsample(2), count=1, conditions=one).x for one in ({}, stated, {"label": 2})
    )
    assert len({one.numpy().tobytes() for one in (free, whole, other)}) == 3
    with pytest.raises(ArgumentError, match="there is no condition txt"):
        restore(made, y, Downsample(2), conditions={"txt": "a"})
    image = save(tmp_path / "small.png", y[0])
    arguments = "--operator", "super-resolution", "--count", 1, "-q", "--device", "cpu", "-o", tmp_path / "out"
    call(made.directory.path, "--image", image, *arguments, "--condition", "text=picture 1", "--label", "1")
    with Image.open(tmp_path / "out" / "restored-1.png") as got:
        pixels = torch.from_numpy(np.array(got)).permute(2, 0, 1).float() / 127.5 - 1
    assert (pixels - whole[0].clamp(-1, 1)).abs().max() < 0.02
    with pytest.raises(UsageError, match="no condition kind"):
        call(made.directory.path, "--image", image, *arguments, "--condition", "kind=1")


def test_mistakes_in_files_are_named(run: Run, picture: torch.Tensor, mask: torch.Tensor, tmp_path: Path) -> None:
    place = run.directory.path
    clean, grey = save(tmp_path / "clean.png", picture[0]), save(tmp_path / "grey.png", picture[0, :1])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no picture")
    cases = [
        (("--image", clean, "--operator", "super-resolution"), "16x16 pixels, not 8x8.*--degrade"),
        (("--image", clean, "--operator", "colourise"), "in colour.*--degrade"),
        (("--image", grey, "--operator", "deblur"), "grey, but 3 channels.*convert it to RGB"),
        (("--image", tmp_path / "none.png", "--operator", "deblur"), "there is no file"),
        (("--image", tmp_path / "text.png", "--operator", "deblur"), "cannot be read as a picture"),
        (("--image", clean, "--operator", "inpaint", "--mask", clean), "the mode RGB"),
        (("--image", clean, "--operator", "inpaint", "--mask", grey), "grey pixels"),
        (("--image", clean, "--operator", "inpaint", "--mask", tmp_path / "other.png"), "8x8 pixels, not 16x16"),
        (("--image", clean, "--operator", "sharpen"), "no operator 'sharpen'"),
        (("--image", clean, "--operator", "deblur,sigma"), "option=number"),
    ]
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message) as error:
            call(place, *arguments, "--device", "cpu")
        assert error.value.fix or error.value.choices
