"""How much faster guided sampling is if both estimates are evaluated in one call instead of two, in one run.

    python benchmarks/guidance.py [--rounds 15] [--steps 10]

Contestants: `cfg` as it is, and the same with one call for each estimate. They take turns on one network and one
schedule; the ratio is that of the medians of CPU times. Both count two evaluations for an example and step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from unittest.mock import patch

import torch

from diffkit import Denoiser, Estimate, Level, Model, Shape, build, guide, sample
from diffkit.basics import guidance as ours

NETWORKS = {
    "mlp, width 128, points": (Shape(2, 2, (), 4), {"name": "mlp", "width": 128}),
    "unet, 16 channels, 8x8": (
        Shape(1, 1, (8, 8), 4),
        {"name": "unet", "channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)},
    ),
    "unet, 32 channels, 8x8": (
        Shape(1, 1, (8, 8), 4),
        {"name": "unet", "channels": 32, "multipliers": (1, 2), "blocks": 2, "attention": (4,)},
    ),
}


def apart(
    denoise: Denoiser, x: torch.Tensor, level: Level, conditions: list[dict[str, torch.Tensor]]
) -> list[Estimate]:
    """One call for each set of conditions."""
    return [denoise(x, level, **one) for one in conditions]


def seconds(shape: Shape, options: dict[str, object], count: int, steps: int, rounds: int) -> tuple[float, float]:
    """Median CPU times of sampling in one call and in two."""
    torch.manual_seed(0)
    name, rest = str(options["name"]), {key: value for key, value in options.items() if key != "name"}
    schedule = build("schedule", "linear")
    model = Model(build("network", name, shape=shape, **rest).eval(), build("parameterization", "eps"), schedule)
    denoise = guide(model, [build("guidance", "cfg", shape=shape, scale=3.0)])
    levels, sampler = build("grid", "trailing").levels(schedule, steps), build("sampler", "ancestral")
    x, label = torch.randn(count, shape.in_channels, *shape.size), torch.arange(count) % 4

    def once() -> float:
        start = time.process_time()
        with torch.no_grad():
            sample(partial(denoise, label=label), sampler, levels, x)
        return time.process_time() - start

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        times[0].append(once())
        with patch.object(ours, "evaluate", apart):
            times[1].append(once())
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | examples | one call, ms a step | two calls | ratio |\n|---|---:|---:|---:|---:|")
    for title, (shape, options) in NETWORKS.items():
        for count in (1, 4, 16):
            one, two = seconds(shape, options, count, given.steps, given.rounds)
            each = [f"{1e3 * value / given.steps:.2f}" for value in (one, two)]
            print(f"| {title} | {count} | {each[0]} | {each[1]} | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
