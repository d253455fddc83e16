"""Listings of runs, from their files alone. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DiffkitError
from ..recipe.yaml import parse
from ..storage.jsonl import read_metrics
from ..storage.manifest import candidates
from ..storage.run_directory import GRID, RunDirectory, runs_in
from .results import STANDARD_ERROR, EvaluationResult, MetricResult, Stage, StageRecord, StageStatus

Losses = tuple[list[float], list[float]]
T = TypeVar("T")


def list_runs(root: Path) -> list[dict[str, str]]:
    """Return a row for each run below `root`: name, step of the newest checkpoint, headline results, report.

    A run that cannot be read has its reason in place of the results, and hides no other run.
    """
    return [_row(run) for run in runs_in(root)]


def _row(run: RunDirectory) -> dict[str, str]:
    row = {"name": run.name, "step": "-", "results": "", "report": "-"}
    try:
        found = candidates(run.checkpoints)
        row |= {"step": str(found[0].step) if found else "-", "report": "yes" if run.report.is_file() else "-"}
        values = {name: result.value for name, result in EvaluationResult.read(run).metrics.items()}
        row["results"] = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
    except (DiffkitError, OSError) as error:
        row["results"] = f"({_reason(error)})"
    return row


def _reason(error: DiffkitError | OSError) -> str:
    return error.message if isinstance(error, DiffkitError) else str(error.strerror)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: a row for each path of the recipes whose values differ, and for each result.

    A row holds one value for each run, None if the run has none.

    Attributes:
        recipes: Values of the recipes.
        results: Losses, values of metrics, and seconds; not of metrics that are refused.
        errors: Standard errors of those results that have one, by the same names.
        unlike: By metric, the settings of its samples that differ, so that its values cannot be compared; a row each.
        refused: The metrics among these that were measured by other rules, such as in features of another network.
        pictures: For each run, the path of the picture of its samples.
        losses: For each run, (steps, losses) of its training log.
        damaged: A sentence for each file that cannot be read; what it holds is left out.
    """

    recipes: Mapping[str, list[Any]]
    results: Mapping[str, list[float | None]]
    errors: Mapping[str, list[float | None]]
    unlike: Mapping[str, Mapping[str, list[Any]]]
    pictures: Sequence[Path | None]
    losses: Sequence[Losses]
    damaged: Sequence[str] = ()
    refused: frozenset[str] = frozenset()

    def is_unlike(self, result: str) -> bool:
        """Return whether a row of `results` belongs to a metric whose values cannot be compared."""
        return result.rpartition(".")[0] in self.unlike

    def shown(self, result: str) -> list[str]:
        """Return the values of a row of `results` as texts, with their standard errors."""
        errors = self.errors.get(result, [None] * len(self.pictures))
        return [_shown(value, error) for value, error in zip(self.results[result], errors, strict=True)]

    def not_comparable(self) -> list[str]:
        """Return a sentence for each metric whose values cannot be compared."""
        return [
            f"{metric} differs in "
            + "; ".join(f"{name}: {', '.join(map(str, row))}" for name, row in fields.items())
            + ("; its values are left out" if metric in self.refused else "")
            for metric, fields in self.unlike.items()
        ]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Compare the runs at `paths`. A file that cannot be read is left out, and named in `damaged`.

    Raises:
        UsageError: A path is not a run directory.
    """
    damaged: list[str] = []

    def each(read: Callable[[RunDirectory], T], otherwise: Any) -> list[T]:
        found = []
        for directory in directories:
            try:
                found.append(read(directory))
            except (DiffkitError, OSError) as error:
                reason, place = _reason(error), f"{directory.path}"
                damaged.append(reason if reason.startswith(place) else f"{place}: {reason}")
                found.append(otherwise)
        return found

    directories = [RunDirectory.open(path) for path in paths]
    recipes = each(_recipe, {})
    losses = each(_losses, ([], []))
    measured = each(lambda directory: EvaluationResult.read(directory).metrics, {})
    stages = each(lambda directory: StageStatus(directory).read(), {})
    pictures = each(_picture, None)
    differing = {path: values for path, values in _differing(recipes).items() if path != "name"}
    metrics = dict.fromkeys(name for one in measured for name in one)
    unlike = {name: _differing([_settings(one[name]) for one in measured if name in one]) for name in metrics}
    rules = {name: dict.fromkeys(repr(one[name].protocol) for one in measured if name in one) for name in metrics}
    refused = frozenset(name for name, each in rules.items() if len(each) > 1)
    shown = [{name: result for name, result in one.items() if name not in refused} for one in measured]
    results = [dict(_values(*columns)) for columns in zip(shown, losses, stages, strict=True)]
    return Comparison(
        differing,
        _side_by_side(results),
        _side_by_side([dict(_errors(one)) for one in shown]),
        {name: fields for name, fields in unlike.items() if fields},
        pictures,
        losses,
        damaged,
        refused,
    )


def _recipe(run: RunDirectory) -> dict[str, Any]:
    return dict(_flat(parse(run.effective_text(), str(run.effective)).plain()))


def _picture(run: RunDirectory) -> Path | None:
    path = run.samples / GRID
    return path if path.is_file() and not path.is_symlink() else None


def _settings(result: MetricResult) -> dict[str, Any]:
    """Return everything that the value of a metric depends on besides the model."""
    drawn = result.settings | {"definition": result.definition, "training examples": result.reference}
    return (
        drawn | {"held-out examples": result.held_out_count, "values of an example": result.dimension} | result.protocol
    )


def _losses(run: RunDirectory) -> Losses:
    rows = [(row["step"], row.get("loss")) for row in read_metrics(run.metrics)]
    known = [(step, loss) for step, loss in rows if step is not None and loss is not None]
    return [step for step, _ in known], [loss for _, loss in known]


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the rows whose values are not all equal; an empty column, of a file that cannot be read, is ignored."""
    rows = _side_by_side(columns)
    known = [index for index, column in enumerate(columns) if column]
    return {name: values for name, values in rows.items() if len({repr(values[index]) for index in known}) > 1}


def _side_by_side(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Transpose one mapping for each run to one row for each name, in the order of first use."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def _values(
    metrics: Mapping[str, MetricResult], losses: Losses, stages: Mapping[Stage, StageRecord]
) -> Iterator[tuple[str, float]]:
    if losses[1]:
        yield "loss.training", losses[1][-1]
    if "train" in stages and stages["train"].held_out_loss is not None:
        yield "loss.held_out", stages["train"].held_out_loss
    for metric, result in metrics.items():
        values = {name: value for name, value in result.values.items() if name != STANDARD_ERROR}
        yield from ((f"{metric}.{name}", value) for name, value in values.items() if value is not None)
    yield from ((f"seconds.{stage}", record.seconds) for stage, record in stages.items())


def _errors(metrics: Mapping[str, MetricResult]) -> Iterator[tuple[str, float]]:
    for metric, result in metrics.items():
        if result.standard_error is not None:
            yield f"{metric}.{result.headline}", result.standard_error


def _shown(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


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
