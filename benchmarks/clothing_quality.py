"""How good photographs of clothes are after ten CPU minutes: diffusion on codes beside diffusion on pixels.

    python benchmarks/clothing_quality.py OUT --data clothing64.npz [--seconds 600] [--codec-steps 1100] [--seeds 0]
                                          [--threads 2] [--count 270] [--evaluations 25] [--only NAME ...] [--table]

Contestants: `codes`, the recipe `latent-clothing64`, whose time includes the training of its autoencoder, the recipe
`vae-clothing64` with `--codec-steps` steps; and `pixels`, the same recipe on pixels, which are multiplied by 2 so that
their standard deviation is 1 too. Its U-Net, that of PIXELS, has levels down to 8 x 8 as a U-Net on pixels needs, and
few channels at 64 x 64; all else is equal. Each first trains a little to learn its speed, and then for the steps that
fit into its time, so that its learning rate ends with it. Time is that of the CPU, as the process counts it. Both draw
by the same sampler with equally many network evaluations, without guidance, from the same seed. `fid`, in features of
EfficientNet-Lite0, stands beside the value of equally many held-out photographs.

OUT keeps the runs and a record for each contestant and seed: a call does what is missing, then prints the table of all
records and names those that are missing. A training that was stopped begins again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digits_quality import table
from fashion_quality import Store

from diffkit import Run, load_recipe, open_run, run

REAL = "real, held out"
METRICS = ("fid", "precision-recall")
REHEARSAL = (1, 40, 240)
SPARE = 0.97
PIXELS = [
    "codec={name: affine, scale: 2.0}",
    "network.inner.channels=16",
    "network.inner.multipliers=[1,2,4,6]",
]
QUIET = ["train.validate_every=0", "evaluate=[]", "sample.guidance=[]", "sample.count=1", "sample.steps=1"]


@dataclass(frozen=True)
class Rules:
    """What all records of one table share."""

    seconds: float
    codec_steps: int
    threads: int
    count: int
    evaluations: int


def timed(recipe: str, changes: list[str], folder: Path) -> tuple[Run, float]:
    """Train a recipe from its start; return its run and the CPU seconds of the process."""
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    return run(load_recipe(recipe, changes), folder, device="cpu"), time.process_time() - began


def fill(recipe: str, changes: list[str], folder: Path, seconds: float) -> tuple[Run, float]:
    """Train a recipe for the steps that fit into `seconds` of CPU time, preparation such as kept codes included."""

    def after(steps: int) -> tuple[Run, float]:
        length = [f"train.steps={steps}", f"train.lr_schedule.warmup={min(100, steps // 10)}"]
        return timed(recipe, [*changes, *length], folder)

    first, short, long = (after(steps)[1] for steps in REHEARSAL)
    each = (long - short) / (REHEARSAL[2] - REHEARSAL[1])
    prepared = first - each * REHEARSAL[0]
    made, spent = after(max(1, int(SPARE * (seconds - prepared) / each)))
    return made, prepared + spent


def train(folder: Path, name: str, seed: int, data: Path, rules: Rules) -> dict[str, Any]:
    """Train a contestant in folder/NAME-SEED; return the facts of its training."""
    common = [f"seed={seed}", f"data.path={data}"]
    changes = [*common, *QUIET]
    facts: dict[str, Any] = {}
    spent = 0.0
    if name == "codes":
        place = folder / f"autoencoder-{seed}"
        steps = [f"train.steps={rules.codec_steps}", QUIET[0], "evaluate=[psnr]"]
        kept = place.with_suffix(".facts")
        if not kept.exists():
            codec, spent = timed("vae-clothing64", [*common, *steps], place)
            made_by = {"codec seconds": round(spent, 1), "psnr": codec.results.metrics["psnr"].value}
            kept.write_text(json.dumps(made_by), encoding="utf-8")
        facts = json.loads(kept.read_text(encoding="utf-8"))
        spent = facts["codec seconds"]
        changes.append(f"codec.run={place}")
    else:
        changes += PIXELS
    made, own = fill("latent-clothing64", changes, folder / f"{name}-{seed}", rules.seconds - spent)
    parameters = sum(p.numel() for p in made.trained("raw").network.parameters())
    return {
        "parameters": parameters,
        "steps": made.recipe.train.steps,
        "batch": made.recipe.train.batch_size,
        "cpu seconds": round(spent + own, 1),
        **facts,
    }


def measure(made: Run, seed: int, rules: Rules) -> dict[str, dict[str, float | None]]:
    """Return the values of the samples and of held-out photographs."""
    found = made.evaluate(METRICS, count=rules.count, steps=rules.evaluations, seed=seed).metrics
    return {
        "values": {name: value for one in METRICS for name, value in found[one].values.items()},
        "real": {name: value for one in METRICS for name, value in found[one].held_out.items()},
    }


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each record, and one for the held-out photographs of each seed."""
    shown = ("parameters", "steps", "batch", "cpu seconds")
    found = []
    for one in records:
        facts = {key: one["facts"][key] for key in shown}
        found.append({"after equal CPU time": one["name"], "seed": one["seed"], **facts, **one["values"]})
    for one in {record["seed"]: record for record in records}.values():
        found.append({"after equal CPU time": REAL, "seed": one["seed"], **dict.fromkeys(shown, ""), **one["real"]})
    return found


def main() -> None:
    """Train, draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="file of the arrays `images` and `labels`")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU seconds of each contestant's training")
    parser.add_argument("--codec-steps", type=int, default=1100, help="steps of the autoencoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=270)
    parser.add_argument("--evaluations", type=int, default=25)
    parser.add_argument("--only", nargs="+", choices=["codes", "pixels"], default=["codes", "pixels"])
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rules = Rules(given.seconds, given.codec_steps, given.threads, given.count, given.evaluations)
    store = Store(given.out, rules)
    for seed in () if given.table else given.seeds:
        for name in given.only:
            facts, record = (store.path(name, seed, kind) for kind in ("facts", "json"))
            if not facts.exists():
                text = json.dumps(train(given.out, name, seed, given.data.resolve(), rules))
                store.write(facts, partial(Path.write_text, data=text, encoding="utf-8"))
                print(f"{name}, seed {seed}: trained, {text}", file=sys.stderr, flush=True)
            if not record.exists():
                values = measure(open_run(given.out / f"{name}-{seed}", device="cpu"), seed, rules)
                whole = {"name": name, "seed": seed, "rules": asdict(rules), **values}
                text = json.dumps({**whole, "facts": json.loads(facts.read_text(encoding="utf-8"))}, indent=1)
                store.write(record, partial(Path.write_text, data=text, encoding="utf-8"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(given.out.glob("*-*.json"))]
    if found:
        print(table(rows(found)))
    done = {(one["name"], one["seed"]) for one in found}
    for missing in [f"{name}, seed {s}" for s in given.seeds for name in given.only if (name, s) not in done]:
        print(f"unfinished: {missing}")


if __name__ == "__main__":
    main()
