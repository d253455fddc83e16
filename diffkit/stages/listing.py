"""What runs there are, from their files alone; torch is not imported."""

from __future__ import annotations

from pathlib import Path

from ..train.manifest import candidates
from .rundir import RunDirectory, runs_in


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
