"""Listings of runs, from their files alone. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DiffkitError
from ..recipe.yaml import parse
from ..storage.manifest import candidates
from ..storage.run_directory import RunDirectory, runs_in
from .results import EvaluationResult
from .stage_status import StageStatus


def list_runs(root: Path) -> list[dict[str, str]]:
    """Return a row for each run below `root`: name, step of the newest checkpoint, headline results, report."""
    return [_row(run) for run in runs_in(root)]


def _row(run: RunDirectory) -> dict[str, str]:
    found = candidates(run.checkpoints)
    try:
        values = {name: result.value for name, result in EvaluationResult.read(run).metrics.items()}
        results = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
    except DiffkitError:  # one damaged run must not hide the others
        results = "(damaged)"
    return {
        "name": run.name,
        "step": str(found[0].step) if found else "-",
        "results": results,
        "report": "yes" if run.report.is_file() else "-",
    }


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: a row for each path of the recipes whose values differ, and for each result.

    A row holds one value for each run, None if the run has none.
    """

    recipes: Mapping[str, list[Any]]
    results: Mapping[str, list[float | None]]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Compare the runs at `paths`.

    Raises:
        UsageError: A path is not a run directory.
        CheckpointError: A file of a run is damaged.
    """
    directories = [RunDirectory.open(path) for path in paths]
    recipes = [dict(_flat(parse(d.effective.read_text("utf-8"), str(d.effective)).plain())) for d in directories]
    results = [dict(_values(directory)) for directory in directories]
    differing = {
        path: values
        for path, values in _side_by_side(recipes).items()
        if path != "name" and len({repr(value) for value in values}) > 1
    }
    return Comparison(differing, _side_by_side(results))


def _side_by_side(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Transpose one mapping for each run to one row for each name, in the order of first use."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def _values(run: RunDirectory) -> Iterator[tuple[str, float]]:
    for metric, result in EvaluationResult.read(run).metrics.items():
        yield from ((f"{metric}.{name}", value) for name, value in result.values.items() if value is not None)
    yield from ((f"seconds.{stage}", seconds) for stage, seconds in StageStatus(run).seconds().items())


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for each value of a tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for index, value in enumerate(tree):
            yield from _flat(value, f"{path}.{index}")
    else:
        yield path, tree
