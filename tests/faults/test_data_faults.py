"""Data that is too small, has changed, or is damaged, and a worker that is killed: an answer, and nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import DATA, RECIPE, Server, events, fault, finished, run, steps, trained

IMAGES = RECIPE.replace("{name: mlp, width: 16, depth: 1, embedding_channels: 8, dropout: 0.1}", "{name: unet, %s}")
IMAGES %= "channels: 8, multipliers: [1], blocks: 1, attention: []"


def with_data(recipe: Path, data: str, text: str = RECIPE) -> Path:
    assert text.count(DATA) == 1
    recipe.write_text(text.replace(DATA, data))
    return recipe


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of 8x8 pixels."""
    folder, draw = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def cut(path: Path) -> bytes:
    """Damage a picture behind its header, where only who decodes it sees it; returns what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    return whole


def test_fewer_examples_than_a_batch(diffkit: Server, recipe: Path) -> None:
    """Reliability 28: they are repeated, and training is no empty loop."""
    with_data(recipe, "{name: mixture, layout: ring, count: 3, held_out: 2}")
    ended = run(diffkit, recipe)
    assert ended.code == 0, ended.err
    assert trained(recipe.parent / "run")["step"] == 20


def test_one_example_too_few(diffkit: Server, recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", np.zeros((1, 2), "float32"))
    ended = run(diffkit, with_data(recipe, "{name: arrays, path: points.npy, held_out: 1}"))
    assert ended.code == 5
    assert "error[DK304] 1 examples are too few to hold out 1" in ended.err


@pytest.mark.slow
def test_data_that_changed_since_the_checkpoint(diffkit: Server, recipe: Path, tmp_path: Path) -> None:
    """Reliability 28: refused with both fingerprints; with the old data it goes on."""
    points = np.random.default_rng(0).standard_normal((40, 2)).astype("float32")
    np.save(tmp_path / "points.npy", points)
    with_data(recipe, "{name: arrays, path: points.npy, held_out: 8}")
    assert run(diffkit, recipe, "whole").code == 0
    assert run(diffkit, recipe, faults=[fault("train.engine:Engine.advance", 8, "term")]).code == 75
    changed = points.copy()
    changed[17, 1] += 1e-6
    np.save(tmp_path / "points.npy", changed)
    ended = run(diffkit, recipe)
    assert ended.code == 5
    assert "error[DK321] the examples have changed since the checkpoint was saved" in ended.err
    assert ended.err.count("Arrays:") == 2
    assert steps(recipe.parent / "run") == [5, 8]
    np.save(tmp_path / "points.npy", points)
    assert run(diffkit, recipe).code == 0
    assert finished(recipe.parent / "run") == finished(recipe.parent / "whole")


def test_damaged_pictures_are_found_before_training(diffkit: Server, recipe: Path, pictures: Path) -> None:
    """Reliability 27: all of them are named; skipped where the recipe says so, and no other example moves."""
    cut(pictures / "3.png")
    (pictures / "7.png").write_bytes(b"")
    ended = run(diffkit, with_data(recipe, "{name: images, path: pictures, held_out: 2}", IMAGES))
    assert ended.code == 5
    assert "error[DK309] 2 of 12 images cannot be used" in ended.err
    assert "3.png: damaged" in ended.err
    assert "7.png: empty file" in ended.err
    shutil.rmtree(recipe.parent / "run")
    ended = run(diffkit, with_data(recipe, "{name: images, path: pictures, held_out: 2, errors: skip}", IMAGES))
    assert ended.code == 0, ended.err
    assert "skipped 2 of 12 images" in ended.err


def test_a_picture_that_breaks_while_workers_read(diffkit: Server, recipe: Path, pictures: Path) -> None:
    """The error of a worker arrives as it was raised; with the picture mended the run goes on."""
    with_data(recipe, "{name: images, path: pictures, held_out: 2, resident: never, workers: 2}", IMAGES)
    assert run(diffkit, recipe, faults=[fault("train.engine:Engine.advance", 8, "term")]).code == 75
    name = next(path for path in sorted(pictures.iterdir()) if path.name not in ("0.png", "1.png"))
    whole = cut(name)
    ended = run(diffkit, recipe)
    assert ended.code == 5
    assert "error[DK321]" in ended.err  # the fingerprint sees it first
    name.write_bytes(whole)
    ended = run(diffkit, recipe, faults=[fault("train.engine:Engine.advance", 3, f"damage {pictures}")])
    assert ended.code == 5, ended.err
    assert "error[DK309]" in ended.err
    assert "damaged" in ended.err
    assert events(recipe.parent / "run", "error")[-1]["code"] == "DK309"
    assert steps(recipe.parent / "run")[-1] in (8, 10)


def test_a_worker_that_is_killed(diffkit: Server, recipe: Path, tmp_path: Path) -> None:
    """Reliability 13: as the kernel does when memory runs out; said so, and the same command goes on."""
    np.save(tmp_path / "points.npy", np.random.default_rng(0).standard_normal((40, 2)).astype("float32"))
    with_data(recipe, "{name: arrays, path: points.npy, held_out: 8, resident: never, workers: 2}")
    assert run(diffkit, recipe, "whole").code == 0
    ended = run(diffkit, recipe, faults=[fault("train.data_loading:_Examples.__getitem__", 60, "kill")])
    assert ended.code == 6, ended.err
    assert "error[DK402] a data worker was killed" in ended.err
    assert run(diffkit, recipe).code == 0
    assert finished(recipe.parent / "run") == finished(recipe.parent / "whole")
