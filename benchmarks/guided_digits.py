"""How often guided digits are what their label states: samples of a conditional run and real digits, one classifier.

    python benchmarks/guided_digits.py RUN [--count 500] [--steps 20] [--scales 1 2] [--seconds 120]

RUN is a run of `benchmarks/mnist-guided.yaml`. The classifier, a small convolutional network, is trained on the
training part for `seconds` of CPU time, and judges held-out digits and the samples of each scale.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit import Run, open_run
from diffkit.data import InMemorySplit

BATCH = 128


def classifier() -> nn.Module:
    """Two convolutions and two layers: (B, 1, 28, 28) -> (B, 10)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)),
    )


def part(run: Run, name: str) -> tuple[Tensor, Tensor]:
    """x in [-1, 1] and labels of a part of the data."""
    split = run.assembly.data.split(name)
    assert isinstance(split, InMemorySplit)
    return run.assembly.data.to_model_range(split.x), split.cond["label"]


def trained(x: Tensor, label: Tensor, seconds: float) -> nn.Module:
    """A classifier after `seconds` of CPU time; shifts of up to 2 pixels are its augmentation."""
    torch.manual_seed(0)
    model = classifier().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    start = time.process_time()
    while (share := (time.process_time() - start) / seconds) < 1.0:
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1.0 + math.cos(math.pi * share))
        rows = torch.randint(len(x), (BATCH,))
        shift = torch.randint(-2, 3, (2,)).tolist()
        loss = fn.cross_entropy(model(x[rows].roll(shift, (2, 3))), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def right(model: nn.Module, x: Tensor, label: Tensor) -> float:
    """Share of examples that are classified as their label."""
    found = torch.cat([model(one).argmax(1) for one in x.split(500)])
    return float((found == label).float().mean())


def main() -> None:
    """Print the share that is classified right: held-out digits, and the samples of each scale."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--seconds", type=float, default=120.0)
    given = parser.parse_args()
    run = open_run(given.run, device="cpu")
    model = trained(*part(run, "train"), given.seconds)
    real = right(model, *part(run, "held-out"))
    print("| digits | classified right | as often as real ones |\n|---|---:|---:|")
    print(f"| held out | {real:.2%} | |", flush=True)
    labels = torch.arange(given.count) % 10
    for scale in given.scales:
        x = run.sample(given.count, labels=labels.tolist(), guidance={"cfg": scale}, steps=given.steps, seed=1)
        share = right(model, x, labels)
        print(f"| {given.count} samples at scale {scale:g} | {share:.2%} | {share / real:.1%} |", flush=True)


if __name__ == "__main__":
    main()
