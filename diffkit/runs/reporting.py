"""The report stage: collects what a run left in its directory and writes report.html; the page that compares runs."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..conditioner import shown_conditions
from ..data import Data
from ..errors import CheckpointError, DiffkitError
from ..host.bibliography import address, cited, readable
from ..recipe.assembly import Assembly, Parts
from ..recipe.contents import named
from ..recipe.effective import effective_yaml, inline, origins
from ..recipe.spec import Recipe
from ..report import (
    Citation,
    Density,
    EffectiveRow,
    LikelihoodTerms,
    Neighbours,
    Reconstructions,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
    build_report,
)
from ..report.comparison import build_comparison
from ..report.pictures import as_images
from ..schedule import sampled
from ..storage import atomic
from ..storage.atomic import damaged_file
from ..storage.jsonl import read_events, read_metrics
from ..storage.run_directory import SAMPLES, TRAJECTORY, RunDirectory
from .evaluation import example_blocks, load_groups, result_names
from .held_out import load_reconstructions
from .listing import Comparison
from .results import RULE, EvaluationResult, Stage, StageRecord, StageStatus
from .sample_files import depicted, has_pictures, load_npz, load_views, stored_conditions, viewable

MIN_REAL = 64
"""Real examples that the report holds at least."""
MAX_NEIGHBOURS = 12
CURVE_POINTS = 200
MAX_PICTURE_BYTES = 64 << 20
DENSITY_POINTS = 160
BOUND = ("t", "layers", "prior", "rate", "squared_error")
"""The arrays of a bound in likelihood/terms.npz."""
PREVIEW = re.compile(r"step-[0-9]{8,18}\.npz")
Array = NDArray[Any]
T = TypeVar("T")


def write_report(directory: RunDirectory, parts: Parts, raise_if_stopped: Callable[[], None] = lambda: None) -> None:
    """Write report.html of a run.

    Args:
        directory: The run.
        parts: The objects of its recipe; their weights are not used.
        raise_if_stopped: Called before each part of the report; an exception that it raises ends the stage.

    Raises:
        ResourceError: The file cannot be written.
    """
    raise_if_stopped()
    collected = collect(directory, parts)
    raise_if_stopped()
    page = build_report(collected)
    raise_if_stopped()
    directory.write_text("report.html", page)


def write_comparison(found: Comparison, names: Sequence[str], path: Path) -> None:
    """Write a comparison of runs as one HTML file.

    Args:
        found: The comparison.
        names: Names of the runs.
        path: The file, which is replaced.

    Raises:
        ResourceError: The file cannot be written.
    """
    notes = [f"Not comparable: {one}" for one in found.not_comparable()] + [f"Left out: {one}" for one in found.damaged]
    pictures: list[bytes | None] = []
    for at in found.pictures:
        try:
            pictures.append(None if at is None else atomic.read_bounded(at, MAX_PICTURE_BYTES))
        except CheckpointError as error:
            pictures.append(None)
            notes.append(f"Left out: {at}: {error.message}")
    shown = {name: found.shown(name) for name in found.results}
    page = build_comparison(names, found.recipes, shown, notes, found.losses, pictures)
    with atomic.writing(path):
        atomic.replace(path, page.encode())


def collect(directory: RunDirectory, parts: Parts) -> ReportInputs:
    """Collect the inputs of the report.

    Parts that the run does not have, and files and data that cannot be read, are left out and listed in `missing`.
    """
    recipe, data = parts.recipe, parts.data
    missing: list[str] = []

    def readable_part(read: Callable[[], T], otherwise: T, without: str = "") -> T:
        try:
            return read()
        except DiffkitError as error:
            reason = f"{without}: {error.message}" if without else error.message
            missing.extend([] if reason in missing else [reason])
            return otherwise

    path = directory.samples / SAMPLES
    stored: dict[str, Array] = readable_part(lambda: load_views(path) if os.path.lexists(path) else {}, {})
    samples = stored.get("view")
    stages: dict[Stage, StageRecord] = readable_part(StageStatus(directory).read, {})
    results = readable_part(lambda: EvaluationResult.read(directory), EvaluationResult())
    results = results.in_order(result_names(recipe.evaluate.metrics))
    verdict = results.verdict
    count = max(MIN_REAL, 0 if samples is None else len(samples))
    real = readable_part(lambda: _Real(data, stored, count), None, "real examples")
    environment: dict[str, Any] = readable_part(lambda: directory.read_json("environment.json"), {})
    effective = readable_part(directory.effective_text, "")
    components = [component for _, component in named(effective_yaml(recipe))]
    more: dict[str, Any] = {}
    if isinstance(parts, Assembly):
        more = _of_diffusion(directory, parts, stored, results, real, readable_part)
    return ReportInputs(
        title=recipe.name,
        data_name=recipe.data.name,
        task=recipe.task,
        hardware=_hardware(environment),
        parameters=sum(p.numel() for p in parts.network.parameters()),
        total_steps=recipe.train.steps,
        created=datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        recipe_yaml=effective,
        effective=list(_effective(effective.splitlines(), str(directory.effective), recipe)),
        environment=environment,
        training_log=readable_part(lambda: read_metrics(directory.metrics), []),
        events=readable_part(lambda: [event.to_record() for event in read_events(directory.events)], []),
        results=results.metrics,
        verdict="" if verdict is None else verdict.text,
        verdict_rule="" if verdict is None else RULE,
        stage_seconds={str(stage): record.seconds for stage, record in stages.items()},
        samples=samples,
        depicted=depicted(data),
        real=None if real is None else viewable(data, torch.cat(real.first)),
        snapshots=[one for one in (readable_part(partial(_snapshot, at), None) for at in _previews(directory)) if one],
        reconstructions=readable_part(lambda: _reconstructions(directory), None),
        loss_by_level=stages["train"].loss_by_level if "train" in stages else None,
        citations=[
            Citation(one.key, readable(one.bibtex), one.used_for, address(one.bibtex)) for one in cited(components)
        ],
        missing=_missing(directory, parts, samples) + missing,
        **more,
    )


def _of_diffusion(
    directory: RunDirectory,
    assembly: Assembly,
    stored: Mapping[str, Array],
    results: EvaluationResult,
    real: _Real | None,
    readable_part: Callable[..., Any],
) -> dict[str, Any]:
    """Return the inputs that the run of a diffusion has."""
    return {
        "sampling": sampling_in_words(assembly),
        "sample_conditions": _conditions(assembly, stored),
        "neighbours": None if real is None else real.neighbours(),
        "trajectory": readable_part(lambda: _trajectory(directory, assembly), None),
        "likelihood": readable_part(lambda: list(_likelihood(directory, assembly, results)), []),
        "schedule": _schedule(assembly),
        "density": None if real is None else _density(assembly, real.low, real.high),
    }


def _reconstructions(directory: RunDirectory) -> Reconstructions | None:
    """Return the reconstructions of a codec; None if there are none. Raises CheckpointError if their file is
    damaged.
    """
    stored = load_reconstructions(directory.samples)
    if stored is None:
        return None
    codes = {name: stored[name] for name in ("mean", "std", "histogram", "edges")}
    return Reconstructions(stored["x"], stored["view"], kl=stored.get("kl"), **codes)


def _conditions(assembly: Assembly, stored: Mapping[str, Array]) -> dict[str, list[str] | Array]:
    """Return the conditions of samples for the report: texts, or pictures of one or three channels."""
    found: dict[str, list[str] | Array] = {}
    for name, raw in stored_conditions(assembly, stored).items():
        texts = shown_conditions(assembly.conditions.specs[name], raw)
        if any(texts):
            found[name] = texts
        elif raw.ndim == 4 and raw.shape[1] in (1, 3):
            found[name] = as_images(raw)
    return found


def sampling_in_words(assembly: Assembly) -> str:
    """Describe in words how the samples of the recipe are drawn."""
    wanted = assembly.recipe.sample
    guidance = "".join(f", {one.name}" for one in wanted.guidance)
    return f"{wanted.sampler.name}, {assembly.steps} steps on grid {wanted.grid.name}{guidance}"


def _effective(lines: Sequence[str], source: str, recipe: Recipe) -> Iterator[EffectiveRow]:
    """Return every value with its origin; for values of effective.yaml, the origin in the comment of their line."""
    for path, value in origins(recipe).items():
        file, _, line = value.origin.rpartition(":")
        from_run = file == source and int(line) <= len(lines)
        origin = lines[int(line) - 1].rpartition(" # ")[2].strip() if from_run else value.origin
        yield EffectiveRow(path, inline(value.value), origin)


def _hardware(environment: Mapping[str, Any]) -> str:
    hardware, threads = (
        found if isinstance(found := environment.get(group), dict) else {} for group in ("hardware", "threads")
    )
    if "accelerator" in hardware:
        return str(hardware["accelerator"])
    count = threads.get("intra_op", "?")
    return f"{hardware.get('processor', 'CPU')}, {count} thread{'' if count == 1 else 's'}"


def _previews(directory: RunDirectory) -> list[Path]:
    """Return the files of the samples that were drawn during training, by step."""
    return sorted(path for path in directory.samples.glob("step-*.npz") if PREVIEW.fullmatch(path.name))


def _snapshot(path: Path) -> Snapshot | None:
    return Snapshot(int(path.stem.removeprefix("step-")), load_views(path)["view"])


class _Real:
    """What the report shows of the training examples, which are read a few at a time.

    Args:
        data: The data set.
        stored: The arrays of the file of samples.
        count: Number of examples to show.
    """

    def __init__(self, data: Data, stored: Mapping[str, Array], count: int) -> None:
        x, shape = stored.get("x"), data.spec.shape
        self.data, self.drawn, self.nearest = data, None, None
        if x is not None and x.shape[1:] == shape and has_pictures(data) and len(x) == len(stored["view"]):
            self.view = stored["view"][:MAX_NEIGHBOURS]
            self.drawn = data.to_model_range(torch.from_numpy(x[:MAX_NEIGHBOURS])).float()
            self.nearest, self.distances = torch.zeros_like(self.drawn), torch.full((len(self.drawn),), math.inf)
        self.first: list[torch.Tensor] = []
        self.low, self.high = torch.full(shape, math.inf), torch.full(shape, -math.inf)
        for block, *_ in example_blocks(data, "train"):
            if count > 0:
                self.first.append(block[:count])
                count -= len(block)
            self.low, self.high = self.low.minimum(block.amin(0)), self.high.maximum(block.amax(0))
            if self.drawn is not None and self.nearest is not None:
                distances, found = torch.cdist(self.drawn.flatten(1), block.flatten(1)).min(1)
                nearer = distances < self.distances
                self.distances[nearer], self.nearest[nearer] = distances[nearer], block[found[nearer]]

    def neighbours(self) -> Neighbours | None:
        """Return the training example nearest to each of the first samples, by the root mean square difference of
        values, in the unit of the metric `nearest-neighbour`.
        """
        if self.nearest is None:
            return None
        spec = self.data.spec
        unit = (2.0 if spec.bounded else 1.0) * math.prod(spec.shape) ** 0.5  # [-1, 1] becomes 0..1
        return Neighbours(self.view, viewable(self.data, self.nearest), self.distances.numpy() / unit)


def _trajectory(directory: RunDirectory, assembly: Assembly) -> Trajectory | None:
    path = directory.samples / TRAJECTORY
    if not os.path.lexists(path):
        return None
    stored = load_npz(path)
    x, x0, times = (stored.get(name) for name in ("x", "x0", "t"))
    if x is None or x0 is None or times is None or x.shape != x0.shape or times.shape != x.shape[:1] or x.ndim < 3:
        raise damaged_file(f"{path.name} holds no trajectory")
    labels = [f"t = {t:.0f}" if assembly.schedule.steps else f"t = {t:.3g}" for t in times.tolist()]
    return Trajectory(x, x0, labels)


def _likelihood(directory: RunDirectory, assembly: Assembly, results: EvaluationResult) -> Iterator[LikelihoodTerms]:
    """Yield the terms of each bound among the results. Raises CheckpointError if their file is damaged."""
    path = directory.likelihood / "terms.npz"
    data, groups = assembly.data, load_groups(path)
    for name in results.metrics:
        found = groups.get(name, {})
        if "layers" not in found:
            continue
        terms = {array: found.get(array, np.zeros(0)) for array in BOUND}
        count = len(terms["layers"])
        sizes = {"prior": (), "rate": (count + 1,), "squared_error": (count + 1,)}
        if count == 0 or any(terms[array].shape != sizes.get(array, (count,)) for array in BOUND):
            raise damaged_file(f"{path.name} holds other arrays than the terms of {name}")
        pictures, rates = found.get("reconstructions"), found.get("reconstruction_rates")
        shown = None
        if pictures is not None and pictures.shape[2:] == data.spec.shape and has_pictures(data):
            flat = viewable(data, torch.from_numpy(pictures.reshape(-1, *data.spec.shape)))
            shown = flat.reshape(*pictures.shape[:2], *flat.shape[1:])
        yield LikelihoodTerms(
            name,
            terms["t"],
            terms["layers"],
            float(terms["prior"]),
            terms["rate"],
            terms["squared_error"],
            reconstructions=shown,
            reconstruction_rates=[] if rates is None else rates.reshape(-1).tolist(),
            pixels=data.spec.bounded,
        )


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


def _density(assembly: Assembly, low: torch.Tensor, high: torch.Tensor) -> Density | None:
    """Return the density of two-dimensional data that has a closed form, on a grid around the examples."""
    log_density = getattr(assembly.data.truth(), "log_density", None)
    if log_density is None or assembly.data.spec.shape != (2,):
        return None
    margin = 0.15 * (high - low)
    (x_min, y_min), (x_max, y_max) = (low - margin).tolist(), (high + margin).tolist()
    x, y = (torch.linspace(*ends, DENSITY_POINTS) for ends in ((x_min, x_max), (y_min, y_max)))
    points = torch.cartesian_prod(y, x).flip(1).double()
    values = log_density(points).exp().reshape(DENSITY_POINTS, DENSITY_POINTS).numpy()
    return Density(values, x_min, x_max, y_min, y_max)


def _missing(directory: RunDirectory, parts: Parts, samples: Array | None) -> list[str]:
    missing = []
    if samples is None and isinstance(parts, Assembly):
        missing.append(f"samples: diffkit sample {directory.path}")
    if not directory.results.is_file():
        missing.append(f"metrics: diffkit evaluate {directory.path}")
    return missing
