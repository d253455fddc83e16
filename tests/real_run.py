"""Small real runs, of points and of images: trained, interrupted and resumed, sampled, measured, with a report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

import diffkit
from diffkit import Run

STEPS, RESUMED_AT = 40, 30


def recipe(kind: str, folder: Path) -> dict[str, Any]:
    """The recipe of "points" (two dimensions, a known density) or of "images" (8x8 pixels of a file in `folder`)."""
    train = {"steps": STEPS, "batch_size": 16, "log_every": 2, "validate_every": 10, "checkpoint_every": 10}
    common = {
        "name": kind,
        "schedule": {"name": "linear", "steps": 50},
        "parameterization": "eps",
        "train": train | {"sample_every": 20, "ema": [{"name": "ema", "decay": 0.9, "warmup": True}]},
    }
    if kind == "points":
        return common | {
            "data": {"name": "mixture", "layout": "ring", "count": 512, "held_out": 256},
            "network": {"name": "mlp", "width": 16, "depth": 1},
            "sample": {"count": 64, "steps": 12},
            "evaluate": {"metrics": ["frechet", "sliced-wasserstein"], "count": 256, "steps": 5},
        }
    path = folder / "images.npz"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:8, 0:8]
    centre, width = rng.uniform(2, 5, (96, 2, 1, 1)), rng.uniform(0.8, 2.0, (96, 1, 1))
    blobs = np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / (2 * width**2))
    np.savez(path, images=(255 * blobs).astype(np.uint8)[..., None])
    return common | {
        "data": {"name": "arrays", "path": str(path)},
        "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
        "sample": {"count": 16, "steps": 12},
        "evaluate": {"metrics": ["frechet", "nearest-neighbour"], "count": 16, "steps": 5},
    }


def make_run(kind: str, folder: Path) -> Run:
    """Run a recipe in `folder`, as if it had been killed after step 30 and started again."""
    source = recipe(kind, folder)
    out = folder / kind
    first = diffkit.run(source, out, device="cpu")
    shutil.rmtree(first.directory.checkpoints / f"step-{STEPS:08d}")
    (out / "stages.json").unlink()
    return diffkit.run(source, out, device="cpu")
