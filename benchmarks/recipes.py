"""Training and sampling steps of recipes, in this checkout and in an earlier one, in one interleaved run.

    python benchmarks/recipes.py --before CHECKOUT [--rounds 24] [--pairs 2] [RECIPE ...]

Each contestant has a process with one thread, and CPU time is counted. Processes of equal code differ by some percent,
because memory lies elsewhere, so each version has several; a ratio is that of the medians over all of them.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from checkouts import in_checkout
from turns import Turns, Work

INNER = {"training step": 8, "10 sampling steps": 1}


def work(recipe: str) -> Work:
    """The steps of a recipe, with the network as it starts; only names that every version has are used."""
    from diffkit import assemble, guide, load_recipe, sample
    from diffkit.runs.training import make_trainer
    from diffkit.runtime.memory import keep_freed_memory

    keep_freed_memory()
    built = assemble(load_recipe(recipe))
    trainer = make_trainer(built, torch.device("cpu"))
    engine = trainer.engine
    source = engine.batch_source(0)

    def train() -> None:
        engine.advance(trainer.step, source)
        trainer.step += 1

    denoise = guide(built.model, built.guidance)
    classes = built.shape.classes
    x = torch.randn(16, built.shape.in_channels, *built.shape.size)
    cond = {} if classes is None else {"label": torch.arange(16) % classes}
    levels = built.levels(10)
    walk = partial(sample, partial(denoise, **cond), built.sampler, levels, x, noise=torch.randn_like)
    return {"training step": train, "10 sampling steps": walk}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["digits", "digits-conditional"])
    parser.add_argument("--before", type=Path, required=True, help="root of an earlier checkout of diffkit")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=2)
    given = parser.parse_args()
    print("| recipe | measured | now, ms | before, ms | ratio |\n|---|---|---:|---:|---:|")
    for recipe in given.recipes:
        builders = {}
        for pair in range(given.pairs):
            builders[f"now {pair}"] = partial(in_checkout, Path(__file__).parents[1], "recipes", "work", recipe)
            builders[f"before {pair}"] = partial(in_checkout, given.before, "recipes", "work", recipe)
        with Turns(builders, 1, cpu_time=True) as turns:
            for what, inner in INNER.items():
                times = turns.measure(what, inner, given.rounds)
                now, before = (
                    1e3 * statistics.median(t for name, each in times.items() if name.startswith(who) for t in each)
                    for who in ("now", "before")
                )
                print(f"| `{recipe}` | {what} | {now:.2f} | {before:.2f} | {now / before:.3f} |", flush=True)


if __name__ == "__main__":
    main()
