"""Runs side by side: where their recipes differ, and what they reached. Torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe.strict import parse
from .ledger import Ledger
from .rundir import RunDirectory


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
        dict(_values(d.read_json("results.json"))) | {f"seconds.{k}": v for k, v in Ledger(d).seconds().items()}
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
