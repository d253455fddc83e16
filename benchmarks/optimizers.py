"""The digits recipe with several optimizers, after equal training time.

    python benchmarks/optimizers.py [--seconds 120] [--threads 2] [--optimizer '{name: muon, lr: 3.0e-3}' ...]
                                    [--seed 0 ...] [--count 512] [--turn 5] [--json OUT]

Muon is the plugin of one file in tests/unit/train. Each contestant first trains a little to measure its speed and is
then built again, so that its learning rate ends with its time. They train in turns, so that a busy machine slows all of
them. Samples are drawn from the averages, from the same noise, and compared with the training digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digits_quality import METRICS, contest, drawn, ours, scores, table

from diffkit import assemble, load_recipe
from diffkit.host import load_file
from diffkit.runs.training import problem_of
from diffkit.train.preprocessing import Preprocessing
from diffkit.train.validation import held_out_loss

MUON = Path(__file__).parents[1] / "tests" / "unit" / "train" / "muon_plugin.py"
OPTIMIZERS = ("{name: adam, lr: 1.0e-3}", "{name: muon, lr: 1.0e-3}", "{name: muon, lr: 3.0e-3}")


def measure(optimizers: list[str], seed: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with each optimizer in turns and return one row of numbers for each."""
    assemblies = [assemble(load_recipe("digits", [f"seed={seed}", f"train.optimizer={one}"])) for one in optimizers]
    found = contest([partial(ours, one) for one in assemblies], given.seconds, given.turn)
    rows = []
    for optimizer, one in zip(optimizers, found, strict=True):
        steps = {"steps": one.done(), "seconds": round(one.seconds, 1)}
        x = drawn(one, given.count, seed).x
        preprocessing = Preprocessing(problem_of(one.assembly))
        loss = held_out_loss(one.model(), preprocessing, torch.device("cpu"), batch_size=64, rounds=4)
        assert loss is not None
        rows.append({"optimizer": optimizer, **steps, "held-out loss": loss.loss, **scores(one.assembly, x, seed)})
    return rows


def main() -> None:
    """Measure each seed, print every row and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--optimizer", nargs="+", default=list(OPTIMIZERS), help="as a recipe has it in train.optimizer"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load_file(MUON)
    rows = [{"seed": seed, **row} for seed in given.seed for row in measure(given.optimizer, seed, given)]
    print(table(rows))
    if len(given.seed) > 1:
        names = ("steps", "held-out loss", *METRICS)
        own = [(one, [row for row in rows if row["optimizer"] == one]) for one in given.optimizer]
        medians = [{"optimizer": o, **{n: statistics.median(r[n] for r in found) for n in names}} for o, found in own]
        print(f"\nmedians of {len(given.seed)} seeds\n\n{table(medians)}")
    if given.json:
        given.json.write_text(json.dumps({"seconds": given.seconds, "threads": given.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
