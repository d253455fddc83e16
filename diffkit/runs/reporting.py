"""The report stage: collects what a run left in its directory and writes report.html."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..recipe import Assembly
from ..recipe.contents import named
from ..recipe.effective import effective_yaml, inline, origins
from ..report import (
    Citation,
    Density,
    EffectiveRow,
    LossByLevel,
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
from .sampling import SAMPLES, TRAJECTORY, load_npz, viewable
from .stage_status import StageStatus

SHOWN = 64
NEIGHBOURS = 12
CURVE = 200
Array = NDArray[Any]


def write_report(directory: RunDirectory, assembly: Assembly, check: Callable[[], None] = lambda: None) -> None:
    """Write report.html of the run in `directory`; `check` is called before each part, what it raises ends this.

    Raises ResourceError where the disk refuses.
    """
    check()
    collected = collect(directory, assembly)
    check()
    page = build_report(collected)
    check()
    directory.write_text("report.html", page)


def collect(directory: RunDirectory, assembly: Assembly) -> ReportInputs:
    """What the report shows; what the run has not got is left out and named."""
    recipe = assembly.recipe
    stored = load_npz(directory.samples / SAMPLES) if (directory.samples / SAMPLES).is_file() else {}
    samples = stored.get("view")
    entries = StageStatus(directory).read()
    train_x, _ = examples(assembly.data, "train")
    environment = directory.read_json("environment.json")
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
        metrics=list(read_records(directory.metrics)),
        events=[event.to_record() for event in read_events(directory.events)],
        results={
            "metrics": _in_order(directory, [metric.name for metric in recipe.evaluate.metrics]),
            "timings": StageStatus(directory).seconds(),
        },
        samples=samples,
        real=viewable(assembly.data, train_x[: max(SHOWN, 0 if samples is None else len(samples))]),
        progress=list(_snapshots(directory)),
        neighbours=_neighbours(assembly, stored, train_x),
        trajectory=_trajectory(directory, assembly),
        loss_by_level=_loss_by_level(entries),
        schedule=_schedule(assembly),
        density=_density(assembly, train_x),
        citations=[Citation(c.key, readable(c.bibtex), c.used_for) for c in cited([r for _, r in _named(assembly)])],
        missing=_missing(directory, samples),
    )


def _effective(directory: RunDirectory, assembly: Assembly) -> Iterator[EffectiveRow]:
    """Every value; one that was read back from effective.yaml has the origin that its line tells."""
    lines = directory.effective.read_text("utf-8").splitlines()
    for path, value in origins(assembly.recipe).items():
        file, _, line = value.origin.rpartition(":")
        told = lines[int(line) - 1].rpartition(" # ")[2].strip() if file == str(directory.effective) else value.origin
        yield EffectiveRow(path, inline(value.value), told)


def _in_order(directory: RunDirectory, wanted: list[str]) -> dict[str, Any]:
    """The metrics of results.json, whose keys are sorted, as the recipe lists them, each with its headline first."""
    records = directory.read_json("results.json").get("metrics", {})
    names = sorted(records, key=lambda name: wanted.index(name) if name in wanted else len(wanted))
    found = {name: (records[name], records[name]["headline"]) for name in names}
    return {name: one | {"values": {head: one["values"][head], **one["values"]}} for name, (one, head) in found.items()}


def sampling_in_words(assembly: Assembly) -> str:
    """How the samples of the recipe are drawn."""
    wanted = assembly.recipe.sample
    guidance = "".join(f", {one.name}" for one in wanted.guidance)
    return f"{wanted.sampler.name}, {assembly.steps} steps on grid {wanted.grid.name}{guidance}"


def _named(assembly: Assembly) -> Any:
    return named(effective_yaml(assembly.recipe))


def _hardware(environment: dict[str, Any]) -> str:
    hardware, threads = environment.get("hardware", {}), environment.get("threads", {})
    if "accelerator" in hardware:
        return str(hardware["accelerator"])
    return f"{hardware.get('processor', 'CPU')}, {threads.get('intra_op', '?')} threads"


def _snapshots(directory: RunDirectory) -> Iterator[Snapshot]:
    for path in sorted(directory.samples.glob("step-*.npz")):
        yield Snapshot(int(path.stem.removeprefix("step-")), load_npz(path)["view"])


def _neighbours(assembly: Assembly, stored: dict[str, Array], train: torch.Tensor) -> Neighbours | None:
    """The nearest training example of the first samples, by distance between all values."""
    if "x" not in stored or len(assembly.data.spec.size) != 2:
        return None
    x = assembly.data.to_model_range(torch.from_numpy(stored["x"][:NEIGHBOURS]))
    distances, found = torch.cdist(x.flatten(1), train.flatten(1)).min(1)
    return Neighbours(stored["view"][:NEIGHBOURS], viewable(assembly.data, train[found]), distances.numpy())


def _trajectory(directory: RunDirectory, assembly: Assembly) -> Trajectory | None:
    path = directory.samples / TRAJECTORY
    if not path.is_file():
        return None
    stored = load_npz(path)
    labels = [f"t = {t:.0f}" if assembly.schedule.steps else f"t = {t:.3g}" for t in stored["t"].tolist()]
    return Trajectory(stored["x"], stored["x0"], labels)


def _loss_by_level(entries: dict[str, Any]) -> LossByLevel | None:
    found = entries.get("train", {}).get("loss_by_level")
    if not found:
        return None
    held_out = found.get("held_out")
    return LossByLevel(
        np.array(found["level"]), np.array(found["loss"]), np.array(held_out) if held_out else None, found["axis"]
    )


def _schedule(assembly: Assembly) -> ScheduleCurves:
    schedule = assembly.schedule
    t = torch.linspace(schedule.t_clean, schedule.t_noise, CURVE, dtype=torch.float64)
    levels = [schedule.level(float(one)) for one in t]
    times = assembly.grid.times(sampled(schedule, assembly.recipe.sample.start), assembly.steps)
    return ScheduleCurves(
        t.numpy(),
        np.array([float(level.alpha) for level in levels]),
        np.array([float(level.sigma) for level in levels]),
        np.array(times),
    )


def _density(assembly: Assembly, train: torch.Tensor) -> Density | None:
    """The true density of two-dimensional data that has a closed form, on a grid around the examples."""
    truth = assembly.data.truth()
    log_density = getattr(truth, "log_density", None)
    if log_density is None or assembly.data.spec.shape != (2,):
        return None
    low, high = train.min(0).values, train.max(0).values
    margin = 0.15 * (high - low)
    (x_min, y_min), (x_max, y_max) = (low - margin).tolist(), (high + margin).tolist()
    x, y = torch.linspace(x_min, x_max, 160), torch.linspace(y_min, y_max, 160)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).double()
    values = log_density(points).exp().reshape(160, 160).numpy()
    return Density(values, x_min, x_max, y_min, y_max)


def _missing(directory: RunDirectory, samples: Array | None) -> list[str]:
    lacking = []
    if samples is None:
        lacking.append(f"samples: diffkit sample {directory.path}")
    if not directory.results.is_file():
        lacking.append(f"metrics: diffkit evaluate {directory.path}")
    return lacking
