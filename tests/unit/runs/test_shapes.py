"""Series and volumes: a run of them has pictures, in its files and in its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffkit import load_recipe, run
from diffkit.cli.main import main

RECIPE = """
name: shapes
data: {name: arrays, path: PATH, layout: channels-first, held_out: 4}
schedule: {name: linear, steps: 20}
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: []}
train: {steps: 2, batch_size: 4, ema: [], sample_every: 1}
sample: {sampler: ddim, steps: 2, count: 6}
evaluate: [nearest-neighbour]
"""
CASES = {
    "series": ((20, 2, 8), (64, 96, 3), "6 series of 8 values"),
    "volumes": ((20, 1, 6, 4, 4), (40, 60, 1), "6 volumes of 6 × 4 × 4 values, as slices"),
}
"""The shape of the data, that of one picture in a grid, and what the report states."""


@pytest.mark.parametrize("kind", CASES)
def test_a_run_has_pictures(kind: str, tmp_path: Path) -> None:
    shape, (height, width, channels), words = CASES[kind]
    np.save(tmp_path / "data.npy", 2 * np.random.default_rng(0).random(shape, "float32") - 1)
    made = run(load_recipe(RECIPE.replace("PATH", str(tmp_path / "data.npy"))), tmp_path / "run", device="cpu")
    samples = made.directory.samples
    with Image.open(samples / "grid.png") as grid:
        assert grid.size == (3 * (width + 4) - 4, 2 * (height + 4) - 4)
        assert len(grid.getbands()) == channels + 1
    assert (samples / "step-00000001.png").is_file()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert words in page
    assert "Denoising trajectory" in page
    assert "Nearest neighbours" in page
    assert main(["sample", str(tmp_path / "run"), "--count", "1", "--out", str(tmp_path / "one.png")]) == 0
    with Image.open(tmp_path / "one.png") as one:
        assert one.size == (width, height)
