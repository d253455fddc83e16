"""A run with a learned codec on a CUDA device: training, samples with their trajectory, evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffkit import load_recipe, run

pytestmark = pytest.mark.gpu

DEVICE = "cuda"

CODEC = """
name: vae
task: codec
data: {name: digits}
codec: {name: kl-vae, factor: 2, channels: 2, width: 8}
loss: l2
train: {steps: 2, batch_size: 8}
"""
LATENT = """
name: latent
data: digits
codec: {name: trained, run: RUN}
schedule: linear
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1, 1], attention: []}
train: {steps: 2, batch_size: 8}
sample: {sampler: ddim, steps: 3, count: 4}
evaluate: {metrics: [sliced-wasserstein], count: 16, steps: 2}
"""


@pytest.mark.parametrize("offload", [False, True])
def test_a_run_on_codes_ends_with_pictures(tmp_path: Path, offload: bool) -> None:
    codec = run(load_recipe(CODEC), tmp_path / "vae", device=DEVICE)
    recipe = load_recipe(LATENT.replace("RUN", str(codec.directory.path)), [f"sample.offload={str(offload).lower()}"])
    made = run(recipe, tmp_path / "latent", device=DEVICE)
    kept = np.load(made.directory.samples / "trajectory.npz")
    assert np.isfinite(kept["x0"]).all()
    assert np.isfinite(made.results.metrics["sliced-wasserstein"].value)
