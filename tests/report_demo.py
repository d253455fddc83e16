"""A report of made-up but lifelike inputs: `python tests/report_demo.py [images|points] FILE` writes one to look at."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from diffkit.report import (
    Citation,
    Density,
    EffectiveRow,
    LossByLevel,
    Neighbours,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
    build_report,
)

RECIPE = """\
# DDPM on scikit-learn's 1,797 handwritten digits; about two minutes on two cores
name: digits
seed: 0
data: {name: digits}
schedule: {name: linear, steps: 1000, beta_start: 1.0e-4, beta_end: 0.02}
parameterization: eps
network:
  name: unet
  channels: 64
  multipliers: [1, 2]
  attention: [4]          # at resolution 4 x 4
objective: simple
train: {steps: 2000, batch_size: 128, warmup: 200, clip: 1.0, ema: 0.995}
sample: {sampler: {name: ancestral, variance: small}, count: 64}
evaluate: [frechet, sliced-wasserstein, nearest-neighbour, classifier]
"""


def digits(count: int, seed: int = 0) -> np.ndarray:
    """Strokes that look like small digits: uint8 (count, 8, 8, 1)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:8, 0:8]
    images = []
    for k in range(count):
        centre, radius = 3.5 + rng.normal(0, 0.3, 2), 1.8 + rng.normal(0, 0.25, 2)
        ring = np.abs(np.hypot((y - centre[0]) / radius[0], (x - centre[1]) / (radius[1] * 0.8)) - 1)
        stroke = np.abs(x - centre[1] - 0.3 * (y - 3.5) * rng.normal(0, 0.4))
        shape = (ring, stroke, np.minimum(ring, stroke + (y < 4)))[k % 3]
        images.append(np.clip(255 * (1.15 - shape * 1.5), 0, 255))
    return np.stack(images).astype(np.uint8)[..., None]


def curves() -> ScheduleCurves:
    """DDPM's linear schedule."""
    bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    visited = np.linspace(1000, 0, 51).round()
    return ScheduleCurves(np.arange(1001.0), np.sqrt(bar), np.sqrt(1 - bar), visited)


def metric_rows(steps: int = 2000, every: int = 10) -> list[dict[str, object]]:
    """metrics.jsonl of a training that went well."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, object]] = []
    for step in range(every, steps + 1, every):
        loss = 0.055 + 0.9 * math.exp(-step / 90) + 0.12 * math.exp(-step / 600)
        rows.append(
            {
                "step": step,
                "loss": loss * rng.lognormal(0, 0.12),
                "grad_norm": (0.12 + 1.5 * math.exp(-step / 150)) * rng.lognormal(0, 0.25),
                "lr": 1e-3 * min(1.0, step / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
                "images_per_second": 1850 * rng.lognormal(0, 0.03),
                "memory": 431_898_624,
            }
        )
        if step % 200 == 0:
            rows[-1]["held_out_loss"] = loss * 1.04
    return rows


def results() -> dict[str, object]:
    """results.json with four metrics."""

    def entry(values: dict[str, float], held_out: dict[str, float], definition: str) -> dict[str, object]:
        common = {"samples": 512, "reference": 1285, "lower_is_better": True, "nfe": 100, "sampler": "ancestral"}
        rows = ({**values, "samples": 512.0, "reference": 1285.0}, {**held_out, "samples": 270.0, "reference": 1285.0})
        return {"values": rows[0], "held_out": rows[1], "definition": definition, **common}

    metrics = {
        "frechet": entry(
            {"frechet": 0.1268},
            {"frechet": 0.0879},
            "squared Frechet distance of two Gaussians fitted to pixels scaled to 0..1",
        ),
        "sliced-wasserstein": entry(
            {"sliced-wasserstein": 0.0312},
            {"sliced-wasserstein": 0.0231},
            "2-Wasserstein distance of projections, root mean square over 256 directions",
        ),
        "nearest-neighbour": entry(
            {"median distance": 1.412, "share closer than data": 0.043},
            {"median distance": 1.377, "share closer than data": 0.05},
            "Distance from a sample to the nearest training example; far below the real one means memorising",
        ),
        "classifier": entry(
            {"accuracy": 0.961, "confidence": 0.93},
            {"accuracy": 0.975, "confidence": 0.95},
            "How often a classifier fitted on real labels agrees with the label that was asked for",
        )
        | {"lower_is_better": False},
    }
    return {"metrics": metrics, "timings": {"train": 123.4, "sample": 18.2, "evaluate": 9.4, "report": 0.9}}


def inputs(kind: str = "images") -> ReportInputs:
    """Everything filled in, for images or for 2-D points."""
    common = {
        "title": "digits" if kind == "images" else "mixture",
        "data_name": "digits" if kind == "images" else "mixture",
        "hardware": "2 CPU threads",
        "sampling": "ancestral sampler, 1,000 steps, averaged weights",
        "parameters": 1_843_521,
        "total_steps": 2000,
        "created": "2025-01-01T12:00+00:00",
        "recipe_yaml": RECIPE,
        "metrics": metric_rows(),
        "results": results(),
        "schedule": curves(),
        "effective": [
            EffectiveRow("name", "digits", "recipe"),
            EffectiveRow("schedule.steps", "1000", "recipe"),
            EffectiveRow("train.steps", "2000", "--set"),
            EffectiveRow("train.optimizer.betas", "[0.9, 0.999]", "default"),
        ],
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "versions": {"diffkit": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.2.1", "pydantic": "2.11.1"},
            "plugins": {"ddpm": "0.1.0", "basics": "0.1.0"},
            "hardware": {"cpu": "x86_64", "threads": 2, "memory": "23 GiB", "gpu": None},
            "git": {"commit": "0123abc", "dirty": False},
        },
        "events": [
            {"time": "2025-01-01T11:57:00.123", "event": "start", "step": 0},
            {"time": "2025-01-01T11:57:50.000", "event": "save", "step": 1000, "seconds": 0.12},
            {"time": "2025-01-01T11:58:10.000", "event": "resume", "step": 1000, "checkpoint": "step-00001000"},
            {"time": "2025-01-01T11:59:00.000", "event": "save", "step": 2000, "seconds": 0.11},
        ],
        "citations": [
            Citation(
                "ho2020denoising",
                "Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. NeurIPS 2020. arXiv:2006.11239.",
                "schedule linear, parameterization eps, sampler ancestral, objective simple",
            )
        ],
    }
    level = np.linspace(10, 990, 25)
    common["loss_by_level"] = LossByLevel(level, 0.6 * np.exp(-level / 90) + 0.03, 0.63 * np.exp(-level / 90) + 0.032)
    return ReportInputs(**common, **(_images() if kind == "images" else _points()))


def _images() -> dict[str, object]:
    rng = np.random.default_rng(3)
    samples, real = digits(64, 5), digits(64, 0)
    x, x0 = [], []
    for bar in (1 + np.cos(np.linspace(np.pi, 0, 12))) / 2:
        clean = samples[:4].astype(float)
        x.append(np.sqrt(bar) * (clean - 127.5) + np.sqrt(1 - bar) * 127.5 * rng.standard_normal(clean.shape) + 127.5)
        x0.append(bar * clean + (1 - bar) * clean.mean(axis=0, keepdims=True))
    path = Trajectory(
        *(np.clip(np.stack(rows), 0, 255).astype(np.uint8) for rows in (x, x0)),
        labels=[f"t={round(t)}" for t in np.linspace(1000, 0, 12)],
    )
    return {
        "samples": samples,
        "real": real,
        "neighbours": Neighbours(samples[:12], real[:12], rng.uniform(0.9, 2.2, 12)),
        "trajectory": path,
        "progress": [
            Snapshot(
                step, np.clip(samples[:8] * a + rng.normal(100, 60, (8, 8, 8, 1)) * (1 - a), 0, 255).astype(np.uint8)
            )
            for step, a in ((250, 0.2), (500, 0.6), (1000, 0.85), (2000, 1.0))
        ],
    }


def _points() -> dict[str, object]:
    rng = np.random.default_rng(4)
    centres = np.array([[math.cos(a), math.sin(a)] for a in np.arange(8) * math.pi / 4]) * 1.5

    def draw(count: int, width: float) -> np.ndarray:
        return centres[rng.integers(0, 8, count)] + width * rng.standard_normal((count, 2))

    grid = np.stack(np.meshgrid(np.linspace(-2.4, 2.4, 160), np.linspace(-2.4, 2.4, 160)), -1)
    values = sum(np.exp(-((grid - centre) ** 2).sum(-1) / (2 * 0.15**2)) for centre in centres)
    samples = draw(2000, 0.17)
    steps = np.linspace(1, 0, 6)
    path = [np.sqrt(1 - s * s) * samples[:500] + s * rng.standard_normal((500, 2)) for s in steps]
    return {
        "samples": samples,
        "real": draw(2000, 0.15),
        "density": Density(values, -2.4, 2.4, -2.4, 2.4),
        "trajectory": Trajectory(
            np.stack(path),
            np.stack([(1 - s * s) * samples[:500] for s in steps]),
            [f"t={round(1000 * s)}" for s in steps],
        ),
        "progress": [Snapshot(step, draw(500, w)) for step, w in ((250, 0.6), (500, 0.35), (1000, 0.2), (2000, 0.16))],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(build_report(inputs(sys.argv[1])), encoding="utf-8")
