"""Every recipe on digits, trained once for the same time; what it reaches goes into the README of its plugin.

    python benchmarks/variants.py [--seconds 60] [--threads 2] [--plugin NAME] [--json FILE] [--write]

Each recipe first trains a little to learn its speed and is then built anew, so that its learning rate ends with its
time. 512 samples are drawn at 10 and 50 evaluations, and with as many as the paper takes where it takes more, and held
against the 1,285 digits of training; the last row of each table is that of 512 real digits which nobody trained on.
Plugins that change sampling alone draw from the weights of `digits`. --json keeps what was measured and goes on from
there; --write renews the tables.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from digits_quality import contest, held_out, ours, scores

from diffkit import Assembly, Model, assemble, build, load_recipe
from diffkit.runs.planning import plan_sampling
from diffkit.runs.sampling import draw_samples

ROOT = Path(__file__).parents[1]
COUNT, SEED = 512, 0
FEW = (10, 50)


@dataclass(frozen=True)
class Row:
    """One line of a table: a recipe (its weights), changed by `--set`s, and how samples are drawn from it."""

    title: str
    recipe: str
    sampler: Mapping[str, Any] | None = None
    grid: Mapping[str, Any] | None = None
    budgets: tuple[int, ...] = FEW
    sets: tuple[str, ...] = field(default=())


DDPM = Row("DDPM: recipe `digits`", "digits", grid={"name": "linspace"}, budgets=(*FEW, 1000))
TABLES = {
    "diffkit-ddim": [DDPM, Row("`ddim`, grid `trailing`", "digits", {"name": "ddim"}, {"name": "trailing"})],
    "diffkit-dpmsolver": [
        DDPM,
        Row("`dpmpp-2m`, grid `quadratic`", "digits", {"name": "dpmpp-2m"}, {"name": "quadratic"}),
        Row("`dpmpp-3m`, grid `quadratic`", "digits", {"name": "dpmpp-3m"}, {"name": "quadratic"}),
        Row("`unipc`, order 2, grid `quadratic`", "digits", {"name": "unipc", "order": 2}, {"name": "quadratic"}),
        Row(
            "`adams`, order 2, grid `angle` to the power 1.25",
            "digits",
            {"name": "adams", "order": 2},
            {"name": "angle", "power": 1.25},
        ),
    ],
    "diffkit-diffusers": [DDPM, Row("recipe `digits-diffusers`", "digits-diffusers")],
    "diffkit-edm": [DDPM, Row("recipe `digits-edm`", "digits-edm", budgets=(10, 35, 50))],
    "diffkit-flow": [DDPM, Row("recipe `digits-flow`", "digits-flow")],
    "diffkit-improved-ddpm": [
        DDPM,
        Row("recipe `digits-improved-ddpm`", "digits-improved-ddpm", budgets=(*FEW, 1000)),
        Row("recipe `digits-vlb`", "digits-vlb", grid={"name": "trailing"}, budgets=(*FEW, 100)),
    ],
    "diffkit-p2": [
        DDPM,
        *(
            Row(f"`{name}`", "digits-min-snr", budgets=budgets, sets=(f"objective.weighting={name}",))
            for name, budgets in (("p2", FEW), ("min-snr", (*FEW, 1000)), ("soft-min-snr", FEW))
        ),
    ],
    "diffkit-score-sde": [
        DDPM,
        Row("recipe `digits-score-sde`", "digits-score-sde", budgets=(*FEW, 1000)),
        Row("recipe `digits-ve`", "digits-ve", budgets=(*FEW, 1000)),
        Row("recipe `digits-probability-flow`", "digits-probability-flow", budgets=(0,)),
    ],
    "diffkit-zero-snr": [
        DDPM,
        Row("recipe `digits-zero-snr`, guidance 3", "digits-zero-snr"),
        Row("the same without guidance", "digits-zero-snr", sets=("sample.guidance=[clip]",)),
    ],
}
REAL = "real digits, held out"


class Trained:
    """Models after equal time; each recipe is trained once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._models: dict[tuple[str, tuple[str, ...]], tuple[Model, int]] = {}

    def __call__(self, row: Row) -> tuple[Assembly, Model, int]:
        """The recipe's objects, the averaged model, and the number of steps."""
        assembly = assemble(load_recipe(row.recipe, [f"seed={SEED}", *row.sets]))
        learned = tuple(s for s in row.sets if not s.startswith("sample."))
        if (row.recipe, learned) not in self._models:
            (one,) = contest([lambda n: ours(assembly, n)], self.seconds, turn=self.seconds)
            self._models[row.recipe, learned] = one.model(), one.done()
        return assembly, *self._models[row.recipe, learned]


def measured(row: Row, trained: Trained) -> Iterator[dict[str, Any]]:
    """One line for each number of evaluations."""
    assembly, model, trained_steps = trained(row)
    sampler = build("sampler", **row.sampler) if row.sampler else assembly.sampler
    grid = build("grid", **row.grid) if row.grid else assembly.grid
    model.network.eval()
    for budget in row.budgets:
        fitting = [n for n in range(1, budget + 1) if (sampler.nfe(n) or 0) <= budget]
        levels = grid.levels(assembly.schedule, fitting[-1] if fitting else assembly.steps)
        chosen = plan_sampling(assembly, count=COUNT, seed=SEED, sampler=sampler, levels=levels, batch_size=256)
        drawn = draw_samples(model, chosen, assembly.codec, "cpu")
        yield {
            "after training for equal time": row.title,
            "steps": trained_steps,
            "evaluations": drawn.nfe,
            **scores(assembly, drawn.x, SEED),
        }


def table(rows: list[dict[str, Any]], seconds: float, threads: int) -> str:
    """Markdown, with a line on how it was made."""
    head = list(rows[0])
    told = {"steps": "training steps"}
    lines = ["| " + " | ".join(told.get(name, name) for name in head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    before = None
    for row in rows:
        shown = row | {head[0]: "" if row[head[0]] == before else row[head[0]]}
        before = row[head[0]]
        lines.append("| " + " | ".join(_cell(shown[name]) for name in head) + " |")
    lines += ["", f"{seconds:.0f} seconds of training on {threads} threads each, {COUNT} samples, pixels in [0, 1]: "]
    return "\n".join(lines).rstrip() + " `python benchmarks/variants.py`."


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1.0 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(plugin: str, text: str) -> None:
    """Put the table between its two marks in the README of the plugin."""
    readme = ROOT / "plugins" / plugin / "README.md"
    before, rest = readme.read_text().split("<!-- measured -->\n")
    _, after = rest.split("<!-- end -->")
    readme.write_text(f"{before}<!-- measured -->\n{text}\n<!-- end -->{after}")


def main() -> None:
    """Train, draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plugin", action="append", choices=sorted(TABLES))
    parser.add_argument("--json", type=Path, help="keep what was measured here, and do not measure it again")
    parser.add_argument("--write", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    kept: dict[str, list[dict[str, Any]]] = {}
    if told.json and told.json.exists():
        kept = json.loads(told.json.read_text())
    trained = Trained(told.seconds)
    real = {"after training for equal time": REAL, "steps": "", "evaluations": "", **scores(*held_out(COUNT), SEED)}
    for plugin in told.plugin or TABLES:
        rows = []
        for row in TABLES[plugin]:
            key = f"{row.recipe} {row.title}"
            if key not in kept:
                kept[key] = list(measured(row, trained))
                print(*kept[key], sep="\n", flush=True)
            rows += kept[key]
            if told.json:
                told.json.write_text(json.dumps(kept, indent=1))
        text = table([*rows, real], told.seconds, told.threads)
        print(f"\n{plugin} {importlib.metadata.version(plugin)}\n{text}", flush=True)
        if told.write:
            write(plugin, text)


if __name__ == "__main__":
    main()
