"""What runs there are, from their files alone; torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe.yaml import parse
from ..storage.manifest import candidates
from ..storage.run_directory import RunDirectory, runs_in
from .stage_status import StageStatus


def runs(root: Path) -> list[dict[str, str]]:
    """A row for each run below `root`: name, step of the newest checkpoint, headline results."""
    return [_row(run) for run in runs_in(root)]


def _row(run: RunDirectory) -> dict[str, str]:
    found = candidates(run.checkpoints)
    return {
        "name": run.name,
        "step": str(found[0].step) if found else "-",
        "results": ", ".join(f"{name} {value:.4g}" for name, value in headline(run).items()),
        "report": "yes" if run.report.is_file() else "-",
    }


def headline(run: RunDirectory) -> dict[str, float]:
    """The headline value of each metric of a run."""
    metrics = run.read_json("results.json").get("metrics", {})
    firsts = {name: record.get("values", {}).get(record.get("headline")) for name, record in metrics.items()}
    return {name: float(value) for name, value in firsts.items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class Comparison:
    """A row for each path whose values differ, and for each result; one value for each run, None where it has none."""

    recipes: Mapping[str, list[Any]]
    results: Mapping[str, list[float | None]]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """The runs at `paths`. Raises UsageError where one is no run directory."""
    directories = [RunDirectory.open(path) for path in paths]
    recipes = [dict(_flat(parse(d.effective.read_text("utf-8"), str(d.effective)).plain())) for d in directories]
    results = [
        dict(_values(d.read_json("results.json"))) | {f"seconds.{k}": v for k, v in StageStatus(d).seconds().items()}
        for d in directories
    ]
    return Comparison(
        {
            path: [recipe.get(path) for recipe in recipes]
            for path in dict.fromkeys(path for recipe in recipes for path in recipe)
            if path != "name" and len({repr(recipe.get(path)) for recipe in recipes}) > 1
        },
        {
            name: [result.get(name) for result in results]
            for name in dict.fromkeys(name for result in results for name in result)
        },
    )


def _values(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for metric, record in results.get("metrics", {}).items():
        for name, value in record.get("values", {}).items():
            if isinstance(value, int | float):
                yield f"{metric}.{name}", float(value)


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for index, value in enumerate(tree):
            yield from _flat(value, f"{path}.{index}")
    else:
        yield path, tree
