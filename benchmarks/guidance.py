"""How much faster guided sampling is if both estimates are evaluated in one call instead of two, in one run.

    python benchmarks/guidance.py [--rounds 24] [--steps 10]

Contestants: `cfg` as it is, and the same with one call for each estimate. They take turns on one network and one
schedule; times and ratios are medians over the rounds, of CPU and of wall time. Both count two evaluations for an
example and step.
"""

from __future__ import annotations

import argparse
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


def seconds(shape: Shape, options: dict[str, object], count: int, steps: int, rounds: int) -> torch.Tensor:
    """Times of sampling: (rounds, 2, 2), in one call and in two, of the CPU and of the wall."""
    torch.manual_seed(0)
    name, rest = str(options["name"]), {key: value for key, value in options.items() if key != "name"}
    schedule = build("schedule", "linear")
    model = Model(build("network", name, shape=shape, **rest).eval(), build("parameterization", "eps"), schedule)
    denoise = guide(model, [build("guidance", "cfg", shape=shape, scale=3.0)])
    levels, sampler = build("grid", "trailing").levels(schedule, steps), build("sampler", "ancestral")
    x, label = torch.randn(count, shape.in_channels, *shape.size), torch.arange(count) % 4

    def once() -> tuple[float, float]:
        start = time.process_time(), time.perf_counter()
        with torch.no_grad():
            sample(partial(denoise, label=label), sampler, levels, x)
        return time.process_time() - start[0], time.perf_counter() - start[1]

    times = []
    for turn in range(rounds + 1):
        pair = {}
        for separate in (False, True) if turn % 2 else (True, False):
            with patch.object(ours, "evaluate", apart if separate else ours.evaluate):
                pair[separate] = once()
        times.append([pair[False], pair[True]])
    return torch.tensor(times[1:])


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | examples | one call, ms a step | two calls | ratio | ratio of wall times |")
    print("|---|---:|---:|---:|---:|---:|")
    for title, (shape, options) in NETWORKS.items():
        for count in (1, 2, 4, 8, 16):
            times = seconds(shape, options, count, given.steps, given.rounds)
            one, two = (1e3 * times[:, :, 0].median(0).values / given.steps).tolist()
            cpu, wall = (times[:, 1] / times[:, 0]).median(0).values.tolist()
            print(f"| {title} | {count} | {one:.2f} | {two:.2f} | {cpu:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
