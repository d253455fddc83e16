"""The report stage: collects what a run left in its directory and writes report.html."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..recipe.assembly import Assembly
from ..recipe.contents import named
from ..recipe.effective import effective_yaml, inline, origins
from ..report import (
    Citation,
    Density,
    EffectiveRow,
    Neighbours,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
    build_report,
)
from ..schedule import sampled
from ..storage.jsonl import read_events, read_records
from ..storage.run_directory import RunDirectory
from .citations import cited, readable
from .evaluation import examples
from .results import RULE, EvaluationResult
from .sampling import SAMPLES, TRAJECTORY, load_npz, viewable
from .stage_status import StageStatus

MIN_REAL = 64
"""Real examples that the report holds at least."""
MAX_NEIGHBOURS = 12
CURVE_POINTS = 200
DENSITY_POINTS = 160
Array = NDArray[Any]


def write_report(
    directory: RunDirectory, assembly: Assembly, raise_if_stopped: Callable[[], None] = lambda: None
) -> None:
    """Write report.html of a run.

    Args:
        directory: The run.
        assembly: The objects of its recipe; their weights are not used.
        raise_if_stopped: Called before each part of the report; an exception that it raises ends the stage.

    Raises:
        ResourceError: The file cannot be written.
    """
    raise_if_stopped()
    collected = collect(directory, assembly)
    raise_if_stopped()
    page = build_report(collected)
    raise_if_stopped()
    directory.write_text("report.html", page)


def collect(directory: RunDirectory, assembly: Assembly) -> ReportInputs:
    """Collect the inputs of the report. Parts that the run does not have are left out and listed in `missing`."""
    recipe = assembly.recipe
    stored = load_npz(directory.samples / SAMPLES) if (directory.samples / SAMPLES).is_file() else {}
    samples = stored.get("view")
    stages = StageStatus(directory).read()
    results = EvaluationResult.read(directory).in_order(metric.name for metric in recipe.evaluate.metrics)
    train_x, _ = examples(assembly.data, "train")
    environment = directory.read_json("environment.json")
    components = [component for _, component in named(effective_yaml(recipe))]
    return ReportInputs(
        title=recipe.name,
        data_name=recipe.data.name,
        sampling=sampling_in_words(assembly),
        hardware=_hardware(environment),
        parameters=sum(p.numel() for p in assembly.network.parameters()),
        total_steps=recipe.train.steps,
        created=datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        recipe_yaml=directory.effective.read_text("utf-8"),
        effective=list(_effective(directory, assembly)),
        environment=environment,
        training_log=list(read_records(directory.metrics)),
        events=[event.to_record() for event in read_events(directory.events)],
        results=results.metrics,
        verdict="" if results.verdict is None else results.verdict.text,
        verdict_rule=RULE,
        stage_seconds={str(stage): record.seconds for stage, record in stages.items()},
        samples=samples,
        real=viewable(assembly.data, train_x[: max(MIN_REAL, 0 if samples is None else len(samples))]),
        snapshots=list(_snapshots(directory)),
        neighbours=_neighbours(assembly, stored, train_x),
        trajectory=_trajectory(directory, assembly),
        loss_by_level=stages["train"].loss_by_level if "train" in stages else None,
        schedule=_schedule(assembly),
        density=_density(assembly, train_x),
        citations=[Citation(one.key, readable(one.bibtex), one.used_for) for one in cited(components)],
        missing=_missing(directory, samples),
    )


def sampling_in_words(assembly: Assembly) -> str:
    """Describe in words how the samples of the recipe are drawn."""
    wanted = assembly.recipe.sample
    guidance = "".join(f", {one.name}" for one in wanted.guidance)
    return f"{wanted.sampler.name}, {assembly.steps} steps on grid {wanted.grid.name}{guidance}"


def _effective(directory: RunDirectory, assembly: Assembly) -> Iterator[EffectiveRow]:
    """Return every value with its origin; for values of effective.yaml, the origin in the comment of their line."""
    lines = directory.effective.read_text("utf-8").splitlines()
    for path, value in origins(assembly.recipe).items():
        file, _, line = value.origin.rpartition(":")
        from_run = file == str(directory.effective)
        origin = lines[int(line) - 1].rpartition(" # ")[2].strip() if from_run else value.origin
        yield EffectiveRow(path, inline(value.value), origin)


def _hardware(environment: Mapping[str, Any]) -> str:
    hardware, threads = environment.get("hardware", {}), environment.get("threads", {})
    if "accelerator" in hardware:
        return str(hardware["accelerator"])
    count = threads.get("intra_op", "?")
    return f"{hardware.get('processor', 'CPU')}, {count} thread{'' if count == 1 else 's'}"


def _snapshots(directory: RunDirectory) -> Iterator[Snapshot]:
    for path in sorted(directory.samples.glob("step-*.npz")):
        yield Snapshot(int(path.stem.removeprefix("step-")), load_npz(path)["view"])


def _neighbours(assembly: Assembly, stored: Mapping[str, Array], train: torch.Tensor) -> Neighbours | None:
    """Return the training example nearest to each of the first samples, by the Euclidean distance of all values."""
    if "x" not in stored or len(assembly.data.spec.size) != 2:
        return None
    x = assembly.data.to_model_range(torch.from_numpy(stored["x"][:MAX_NEIGHBOURS]))
    distances, found = torch.cdist(x.flatten(1), train.flatten(1)).min(1)
    return Neighbours(stored["view"][:MAX_NEIGHBOURS], viewable(assembly.data, train[found]), distances.numpy())


def _trajectory(directory: RunDirectory, assembly: Assembly) -> Trajectory | None:
    path = directory.samples / TRAJECTORY
    if not path.is_file():
        return None
    stored = load_npz(path)
    labels = [f"t = {t:.0f}" if assembly.schedule.steps else f"t = {t:.3g}" for t in stored["t"].tolist()]
    return Trajectory(stored["x"], stored["x0"], labels)


def _schedule(assembly: Assembly) -> ScheduleCurves:
    schedule = assembly.schedule
    t = torch.linspace(schedule.t_clean, schedule.t_noise, CURVE_POINTS, dtype=torch.float64)
    levels = [schedule.level(float(one)) for one in t]
    times = assembly.grid.times(sampled(schedule, assembly.recipe.sample.start), assembly.steps)
    return ScheduleCurves(
        t.numpy(),
        np.array([float(level.alpha) for level in levels]),
        np.array([float(level.sigma) for level in levels]),
        np.array(times),
    )


def _density(assembly: Assembly, train: torch.Tensor) -> Density | None:
    """Return the density of two-dimensional data that has a closed form, on a grid around the examples."""
    log_density = getattr(assembly.data.truth(), "log_density", None)
    if log_density is None or assembly.data.spec.shape != (2,):
        return None
    low, high = train.min(0).values, train.max(0).values
    margin = 0.15 * (high - low)
    (x_min, y_min), (x_max, y_max) = (low - margin).tolist(), (high + margin).tolist()
    x, y = (torch.linspace(*ends, DENSITY_POINTS) for ends in ((x_min, x_max), (y_min, y_max)))
    points = torch.cartesian_prod(y, x).flip(1).double()
    values = log_density(points).exp().reshape(DENSITY_POINTS, DENSITY_POINTS).numpy()
    return Density(values, x_min, x_max, y_min, y_max)


def _missing(directory: RunDirectory, samples: Array | None) -> list[str]:
    missing = []
    if samples is None:
        missing.append(f"samples: diffkit sample {directory.path}")
    if not directory.results.is_file():
        missing.append(f"metrics: diffkit evaluate {directory.path}")
    return missing
