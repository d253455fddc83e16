"""This checkout and an earlier one in one process, step by step in turns: the comparison that resolves 2 percent.

    python benchmarks/together.py CHECKOUT [--what train|sampling | --recipe NAME] [--rounds 60] [--before-first]

Processes with identical code differ by up to 7 percent, because their memory lies elsewhere; two versions in one
process share it. One thread, CPU time, digits U-Net, or training and sampling steps of a recipe. Each row has the
ratio of the medians, the median of the ratios of the rounds, and the ratio of the means of the fastest quarters.
`--before-first` builds the earlier version first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import torch
from checkouts import in_checkout
from contestants import SIZES
from turns import Work

HERE = Path(__file__).resolve().parents[1]
PRACTICE = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="root of an earlier checkout of diffkit")
    parser.add_argument("--what", choices=("train", "sampling"), default="train")
    parser.add_argument("--recipe", help="compare steps of a recipe that both versions have")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--before-first", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = astuple(SIZES["digits"])
    arguments: tuple[object, ...] = ("train_work", "ours", *size)
    if given.recipe:
        arguments = ("recipe_work", "ours", given.recipe)
    elif given.what == "sampling":
        arguments = ("sampling_work", "ours", 10, *size)
    roots = {"now": HERE, "before": given.checkout}
    works: dict[str, Work] = {}
    for name in reversed(roots) if given.before_first else roots:
        torch.manual_seed(0)
        works[name] = in_checkout(roots[name], *arguments)
    for what in works["now"]:
        now, before = in_turns([works["now"], works["before"]], what, given.rounds)
        medians = statistics.median(now) / statistics.median(before)
        each = statistics.median(a / b for a, b in zip(now, before, strict=True))
        print(
            f"{what:18s} {medians:.3f} {each:.3f} {fastest(now) / fastest(before):.3f}   {1e3 * fastest(now):8.3f} ms"
        )


def in_turns(works: Sequence[Work], what: str, rounds: int) -> list[list[float]]:
    """CPU seconds of each call of `what`, for each version; who begins changes from round to round."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds + PRACTICE):
        for index in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            works[index][what]()
            times[index].append(time.process_time() - began)
    return [spent[PRACTICE:] for spent in times]


def fastest(times: Sequence[float]) -> float:
    """The mean of the fastest quarter."""
    return statistics.mean(sorted(times)[: max(1, len(times) // 4)])


if __name__ == "__main__":
    main()
