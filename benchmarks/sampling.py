"""A sampling step with a real network, beside diffusers and beside an earlier checkout, in one interleaved run.

    python benchmarks/sampling.py [--before CHECKOUT] [--rounds 9] [--threads 2] [--size digits ...] [--cpu-time]

Two tables: the whole step with the U-Net of each size, as a ratio; and what sampler and loop cost besides the network,
measured with a network that is free, as a share of the whole step. Noise is drawn beforehand in diffkit's walks; the
schedulers of diffusers draw theirs, so compare the overhead of deterministic samplers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path

from checkouts import in_checkout
from contestants import SIZES
from sampling_work import SAMPLERS, diffusers, ours
from turns import Turns, Work, ratios

STEPS = {"digits": 10, "large": 1}
FREE_STEPS = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="root of an earlier checkout of diffkit")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", action="append", choices=sorted(STEPS))
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, for a busy machine, with one thread")
    given = parser.parse_args()
    for name in given.size or STEPS:
        size, steps = astuple(SIZES[name]), STEPS[name]
        whole = measure(given, {s: s for s in SAMPLERS}, steps, size)
        free = measure(given, {s: f"{s}, free" for s in SAMPLERS}, FREE_STEPS, size)
        report(name, whole, free)


def measure(
    given: argparse.Namespace, names: Mapping[str, str], steps: int, size: tuple[object, ...]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of one step: by sampler, by contestant, one value a round."""
    builders: dict[str, partial[Work]] = {
        "diffkit": partial(ours, steps, *size),
        "diffusers": partial(diffusers, steps, *size),
    }
    if given.before:
        builders["before"] = partial(in_checkout, given.before, "sampling_work", "ours", steps, *size)
    with Turns(builders, given.threads, cpu_time=given.cpu_time) as turns:
        found = {sampler: turns.measure(work, 1, given.rounds) for sampler, work in names.items()}
    return {s: {who: [t / steps for t in spent] for who, spent in times.items()} for s, times in found.items()}


def report(name: str, whole: dict[str, dict[str, list[float]]], free: dict[str, dict[str, list[float]]]) -> None:
    """Two tables of one size."""
    print(f"{name}: whole step, ms, and how many times as long as diffkit")
    for sampler, times in whole.items():
        against = ratios(times, "diffkit")
        cells = [f"{who} {statistics.median(spent) * 1e3:.2f} ({against[who]:.3f})" for who, spent in times.items()]
        print(f"  {sampler:10s} {'   '.join(cells)}", flush=True)
    print(f"{name}: sampler and loop without a network, us a step, share of diffkit's whole step")
    for sampler, times in free.items():
        step = statistics.median(whole[sampler]["diffkit"])
        cells = [
            f"{who} {statistics.median(spent) * 1e6:.0f} ({statistics.median(spent) / step:.2%})"
            for who, spent in times.items()
        ]
        print(f"  {sampler:10s} {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
