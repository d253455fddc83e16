"""Image to image, inpainting, sizes and start noise of any run: what is kept, what is computed, what is refused."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit import Level, Run, SampleNoise, build, load_recipe, run, sample
from diffkit.blending import Held
from diffkit.cli.main import main
from diffkit.errors import ArgumentError
from diffkit.runs.editing import Edit, edit_of
from diffkit.testing import GaussianOracle

pytestmark = pytest.mark.xdist_group("editing")

RECIPE = """
name: editing
data: {name: digits, labels: true, condition_dropout: 0.1}
schedule: {name: linear, steps: 50}
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1, 1], attention: []}
train: {steps: 1, batch_size: 4, ema: []}
sample: {sampler: ddim, steps: 10, count: 2}
"""
PIXELS = (np.random.default_rng(0).random((8, 8)) * 255).astype("uint8")
MASK = np.zeros((8, 8), "uint8")
MASK[:, :3] = 255


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(load_recipe(RECIPE), tmp_path_factory.mktemp("editing") / "run", device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, its mask, pictures of other forms, and start noise."""
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(PIXELS).save(folder / "image.png")
    Image.fromarray(MASK).save(folder / "mask.png")
    Image.fromarray(np.zeros((8, 9), "uint8")).save(folder / "wide.png")
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(folder / "colour.png")
    Image.fromarray(np.zeros((8, 8), "float32")).save(folder / "float.tiff")
    np.save(folder / "noise.npy", np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype("float32"))
    return folder


def test_image_to_image_takes_the_last_steps_from_the_noisy_picture(trained: Run, files: Path) -> None:
    """The last int(n q) steps, from alpha x0 + sigma eps; strength 0.65 of 10 steps are 6."""
    made = trained.sample(2, image=files / "image.png", strength=0.65, labels=[1, 2], seed=4)
    levels = trained.assembly.levels()[4:]
    x0 = torch.from_numpy(PIXELS).float().div(127.5).sub(1.0).expand(2, 1, 8, 8)
    noise = SampleNoise(4, range(2))
    model = partial(trained.denoiser(), label=torch.tensor([1, 2]))
    x = levels[0].add_noise(x0, noise.initial((1, 8, 8)))
    want = sample(model, trained.assembly.sampler, levels, x)
    torch.testing.assert_close(made, want)
    whole = trained.sample(2, x=x0, levels=levels, labels=[1, 2], seed=4)
    torch.testing.assert_close(made, whole)


@pytest.mark.parametrize("strength", [None, 0.5])
def test_inpainting_keeps_the_pixels_outside_the_mask(trained: Run, files: Path, strength: float | None) -> None:
    made = trained.sample(2, image=files / "image.png", mask=files / "mask.png", strength=strength)
    kept = torch.from_numpy(PIXELS).float().div(127.5).sub(1.0)[:, 3:]
    assert torch.equal(made[:, 0, :, 3:], kept.expand(2, 8, 5))
    other = trained.sample(2, image=files / "image.png", mask=MASK > 0, strength=strength)
    assert torch.equal(made, other)
    free = trained.sample(2)
    assert not torch.allclose(made[:, 0, :, :3], free[:, 0, :, :3])


def test_the_known_part_follows_its_own_noise_and_ends_as_it_is() -> None:
    oracle, x0 = GaussianOracle(torch.zeros(2, dtype=torch.float64), 1.0), torch.tensor([[0.3, -0.7]]).double()
    eps, unknown = torch.tensor([[1.1, 0.4]]).double(), torch.tensor([[1.0, 0.0]])
    levels = [Level(np.cos(a), np.sin(a)) for a in (1.4, 1.0, 0.5, 0.1)]
    seen: list[torch.Tensor] = []
    held = Held(build("sampler", "ddim"), x0, eps, unknown)
    end = sample(oracle, held, levels, levels[0].add_noise(x0, eps), on_step=lambda step: seen.append(step.x))
    for level, x in zip(levels[1:-1], seen, strict=False):
        assert float(x[0, 1]) == pytest.approx(level.alpha * -0.7 + level.sigma * 0.4)
    assert float(end[0, 1]) == float(x0[0, 1])
    alone = sample(oracle, build("sampler", "ddim"), levels, levels[0].add_noise(x0, eps))
    assert float(end[0, 0]) == pytest.approx(float(alone[0, 0]))


def test_pixels_outside_the_mask_are_put_back_after_decoding() -> None:
    """A codec changes them: the latents hold them, the decoded picture does not."""
    x0, unknown = torch.randn(1, 3, 4, 4), (torch.arange(16).reshape(1, 1, 4, 4) % 2).float()
    drawn = torch.randn(2, 3, 4, 4)
    pasted = Edit(x0, unknown).paste(drawn, slice(0, 2))
    assert torch.equal(pasted, torch.where(unknown > 0.5, drawn, x0))
    assert torch.equal(Edit(x0).paste(drawn, slice(0, 2)), drawn)


def test_start_noise_of_a_file_is_that_of_the_seed(trained: Run, files: Path, capsys: Any) -> None:
    noise = np.load(files / "noise.npy")
    made = trained.sample(2, latents=noise)
    levels, model = trained.assembly.levels(), partial(trained.denoiser(), label=torch.tensor([0, 1]))
    want = sample(model, trained.assembly.sampler, levels, levels[0].sigma * torch.from_numpy(noise))
    torch.testing.assert_close(made, want)
    torch.testing.assert_close(made, trained.sample(2, latents=torch.from_numpy(noise)))
    assert torch.equal(made, trained.sample(latents=files / "noise.npy"))
    out = files / "drawn.npz"
    assert main(["sample", str(trained.directory.path), "--latents", str(files / "noise.npy"), "--out", str(out)]) == 0
    stored = trained.assembly.data.to_storage(made).numpy()
    assert np.array_equal(np.load(out)["x"], stored)


def test_the_count_is_that_of_the_start_noise_else_of_the_recipe(trained: Run, files: Path, capsys: Any) -> None:
    one = np.load(files / "noise.npy")[0]
    assert len(trained.sample(latents=one)) == 1
    assert len(trained.sample(latents=np.stack([one] * 3))) == 3
    assert len(trained.sample(latents=one, labels=[3, 4], count=2)) == 2
    assert len(trained.sample(labels=[3])) == len(trained.sample(image=files / "image.png")) == 2
    np.save(files / "one.npy", one)
    assert main(["sample", str(trained.directory.path), "--latents", str(files / "one.npy"), "-q"]) == 0
    assert "1 samples" in capsys.readouterr().out


def test_a_picture_file_is_turned_upright_as_training_pictures_are(trained: Run, files: Path) -> None:
    turned, exif = Image.fromarray(np.rot90(PIXELS).copy()), Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right side of the picture
    turned.save(files / "turned.png", exif=exif)
    same = [trained.sample(1, image=files / name, strength=0.3, seed=1) for name in ("image.png", "turned.png")]
    assert torch.equal(*same)


def test_a_mask_of_16_bits_is_white_from_the_middle_of_its_range(trained: Run, tmp_path: Path) -> None:
    values = np.full((8, 8), 300, "uint16")
    values[:, :3] = 40_000
    Image.fromarray(values).save(tmp_path / "mask.png")
    edit = edit_of(trained.assembly, (8, 8), 1, PIXELS[None], tmp_path / "mask.png", None, (1, 8, 8))
    assert edit.unknown is not None
    assert torch.equal(edit.unknown[0, 0], torch.from_numpy(MASK > 0).float())


def test_a_mask_that_vanishes_at_the_size_of_the_codes_is_refused(trained: Run) -> None:
    mask, image = np.zeros((8, 8), bool), torch.zeros(1, 8, 8)
    mask[:, 1:4] = True
    with pytest.raises(ArgumentError, match="nothing of it is left at the size of the codes, 2x2") as caught:
        edit_of(trained.assembly, (8, 8), 1, image, mask, None, (4, 2, 2))
    assert "at least 4 pixels wide" in (caught.value.fix or "")
    mask[:, 4] = True
    assert edit_of(trained.assembly, (8, 8), 1, image, mask, None, (4, 2, 2)).unknown is not None


def test_other_sizes(trained: Run) -> None:
    assert trained.sample(1, size=[8, 8], image=torch.zeros(1, 8, 8)).shape == (1, 1, 8, 8)  # type: ignore[arg-type]
    assert trained.sample(1, size=(8, 16)).shape == (1, 1, 8, 16)
    with pytest.raises(ArgumentError, match="do not take the size 8x13") as caught:
        trained.sample(1, size=(8, 13))
    assert "8x12 or 8x14" in (caught.value.fix or "")


def test_the_commands_of_a_picture(trained: Run, files: Path, capsys: Any) -> None:
    out = files / "painted.npz"
    words = ["sample", str(trained.directory.path), "--image", str(files / "image.png"), "--out", str(out), "-q"]
    assert main([*words, "--mask", str(files / "mask.png"), "--size", "8x8", "--set", "sample.preset=diffusers"]) == 0
    kept = trained.assembly.data.to_storage(torch.from_numpy(PIXELS).float().div(127.5).sub(1.0)).numpy()
    found = np.load(out)["x"]
    assert found.shape == (2, 1, 8, 8)
    assert np.array_equal(found[:, 0, :, 3:], np.broadcast_to(kept[:, 3:], (2, 8, 5)))


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"mask": "mask.png"}, "mask is given without an image"),
    ({"strength": 0.5}, "strength is given without an image"),
    ({"image": "image.png", "strength": 1.2}, "strength must be a number from 0 to 1, got 1.2"),
    ({"image": "image.png", "strength": 0.05}, "strength 0.05 of 10 steps leaves no step"),
    ({"image": "wide.png"}, "image has 8x9 pixels, but the samples have 8x8"),
    ({"image": "colour.png"}, "image has the mode RGB, but the run makes L"),
    ({"image": "none.png"}, "image cannot be read"),
    ({"image": "image.png", "mask": "wide.png"}, "mask has 8x9 pixels, but the image has 8x8"),
    ({"image": "image.png", "mask": np.zeros((8, 8))}, "mask is black"),
    ({"image": "image.png", "mask": np.ones((1, 3, 8, 8))}, r"mask has the shape \(1, 3, 8, 8\), not \(8, 8\)"),
    ({"latents": np.zeros((3, 1, 8, 8), "float32")}, "latents are of shape"),
    ({"latents": "none.npy"}, "none.npy cannot be read"),
    ({"latents": {"x": 1}}, "latents are a dict"),
    ({"negative": ["a", "b"]}, r"negative must be a text, got \['a', 'b'\]"),
    ({"image": "image.png", "mask": "float.tiff"}, "mask has the mode F, whose range is unknown"),
    ({"prompt": "a cat"}, "there is no condition text; the model has: label"),
)


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(
    trained: Run, files: Path, given: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "trained", lambda *_: pytest.fail("weights were loaded"))
    placed = {key: files / value if str(value).endswith((".png", ".tiff")) else value for key, value in given.items()}
    with pytest.raises(ArgumentError, match=told) as caught:
        trained.sample(2, **placed)
    assert caught.value.fix


def test_a_negative_condition_at_scale_1_warns_once(trained: Run) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained.sample(1, guidance={"cfg": {"scale": 1.0, "negative": {"label": 3}}}, labels=[1], steps=2)
    assert [str(one.message) for one in caught] == ["the negative condition of the guidance has no effect at scale 1"]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["sample", "--guidance", "cfg.foo=3"], "--guidance cfg.foo=3"),
        (["sample", "--sampler", "ddim,etta=1"], "--sampler ddim,etta=1"),
        (["evaluate", "--metric", "mmd", "--set", "typo=1"], "--set typo=1"),
    ],
)
def test_a_wrong_option_is_shown_where_it_stands(trained: Run, words: list[str], place: str, capsys: Any) -> None:
    assert main([words[0], str(trained.directory.path), *words[1:]]) != 0
    told = capsys.readouterr().err
    assert f"1 | {place}" in told
    assert "build(" not in told
