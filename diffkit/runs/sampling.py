"""Sampling: requests, plans, the drawing of samples, and the files that they are written to."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..codec import Codec
from ..denoiser import Denoiser
from ..errors import ArgumentError
from ..grid import Grid
from ..guidance import guide
from ..level import Level
from ..noise import SampleNoise
from ..recipe.assembly import Assembly, build
from ..runtime.progress import Progress
from ..sampler import Sampler, StepInfo, sample
from ..schedule import default_steps, sampled

MAX_FRAMES = 12
"""Steps of the first batch that trajectory.npz holds."""
FRAME_ROWS = 8
"""Samples that each of these steps shows."""
MAX_SEED = 2**63 - 1
MAX_LISTED = 20
"""Names of classes that a message lists."""

Component = str | Mapping[str, Any]
OnStep = Callable[[StepInfo], None]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A request for samples. An argument that is None is taken from the recipe.

    Args:
        count: Number of samples, at least 1.
        sampler: A sampler, its name, or a mapping of its name and options.
        grid: A grid, its name, or a mapping of its name and options.
        steps: Number of sampling steps.
        seed: 0 to 2^63 - 1. Sample i of a seed is the same in every batch.
        weights: "raw", "ema", the name of an average, or "width:W".
        labels: Classes by number or name, repeated until there are `count`.
        x: Examples (count, C, *S) to start from instead of noise (image to image), as `as_examples` takes them.
        start: The time whose noise is added to `x`; required with `x`, unless `levels` are given.
        levels: The levels that the sampler visits, noisiest first, in place of `grid`, `steps` and `start`.

    Raises:
        ArgumentError: A value is of the wrong type or out of range.
    """

    count: int
    sampler: Sampler[Any] | Component | None = None
    grid: Grid | Component | None = None
    steps: int | None = None
    seed: int = 0
    weights: str = "ema"
    labels: Sequence[int | str] | None = None
    x: Tensor | None = None
    start: float | None = None
    levels: Sequence[Level] | None = None

    def __post_init__(self) -> None:
        require_whole("count", self.count, 1)
        require_whole("seed", self.seed, 0, MAX_SEED)
        if self.steps is not None:
            require_whole("steps", self.steps, 1)
        if not isinstance(self.weights, str):
            raise _wrong(f"weights must be a name, got {type(self.weights).__name__}", 'pass weights="ema" or "raw"')
        if self.start is not None and (isinstance(self.start, bool) or not isinstance(self.start, int | float)):
            raise _wrong(f"start must be a time of the schedule, got {self.start!r}", "pass a number")
        if self.levels is not None:
            self._require_levels(self.levels)
        elif self.x is not None and self.start is None:
            raise _wrong("x requires start, the time whose noise is added to it", "pass start=")

    def _require_levels(self, levels: object) -> None:
        """Raise ArgumentError unless there are at least two levels, and nothing else chooses them."""
        others = [name for name in ("grid", "steps", "start") if getattr(self, name) is not None]
        if others:
            raise _wrong(f"levels are given in place of {', '.join(others)}", f"leave {others[0]} out")
        listed = list(levels) if isinstance(levels, list | tuple) else []
        if len(listed) < 2 or not all(isinstance(level, Level) for level in listed):
            fix = "pass two or more, such as run.assembly.levels(20)"
            raise _wrong(f"levels must be a list of Level, noisiest first, got {type(levels).__name__}", fix)


@dataclass(frozen=True)
class SamplingPlan:
    """A complete plan of samples: a request whose open choices were taken from the recipe.

    Args:
        sampler: The sampler.
        levels: The levels that the sampler visits, noisiest first.
        shape: (C, *S) of one sample before the codec.
        count: Number of samples.
        seed: Seed of the noise.
        batch_size: Samples drawn at a time; the samples do not depend on it.
        labels: (count,) long, or None without classes.
        first: Number of the first sample among those of the seed.
    """

    sampler: Sampler[Any]
    levels: Sequence[Level]
    shape: tuple[int, ...]
    count: int
    seed: int = 0
    batch_size: int = 64
    labels: Tensor | None = None
    first: int = 0


@dataclass(frozen=True)
class SampleTrajectory:
    """A few samples during sampling: x and the estimate of x0, (K, B, C, *S) each, at K `levels`, noisiest first."""

    x: Tensor
    x0: Tensor
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class SampleBatch:
    """Samples in the model's range, x: (N, C, *S) float32 on the CPU, and their labels (N,) or None.

    `nfe` is the number of network calls for each sample, `seconds` the time for all of them.
    """

    x: Tensor
    labels: Tensor | None
    nfe: int
    seconds: float
    trajectory: SampleTrajectory | None = None


def plan_request(assembly: Assembly, request: SampleRequest) -> SamplingPlan:
    """Resolve a request with the objects of a recipe.

    Raises:
        ArgumentError: The request does not fit the recipe: labels, `start`, or the type of a component.
        RecipeError: The name or an option of a component is unknown.
    """
    sampler = _component("sampler", Sampler, request.sampler) or assembly.sampler
    grid = _component("grid", Grid, request.grid) or assembly.grid
    return plan_sampling(
        assembly,
        count=request.count,
        seed=request.seed,
        sampler=sampler,
        levels=request.levels or grid_levels(assembly, grid, request.steps, request.start),
        labels=request.labels,
    )


def plan_sampling(
    assembly: Assembly,
    *,
    count: int,
    seed: int,
    sampler: Sampler[Any] | None = None,
    levels: Sequence[Level] | None = None,
    labels: Sequence[int | str] | None = None,
    batch_size: int | None = None,
) -> SamplingPlan:
    """Return the plan for samples. Each argument that is left out is taken from the recipe.

    Args:
        assembly: The objects of the recipe.
        count: Number of samples.
        seed: Seed of the noise.
        sampler: The sampler.
        levels: The levels that the sampler visits, noisiest first.
        labels: Classes by number or name, repeated until there are `count`.
        batch_size: Samples drawn at a time.

    Returns:
        The plan.

    Raises:
        ArgumentError: `labels` holds a class that the run does not have.
    """
    return SamplingPlan(
        sampler or assembly.sampler,
        levels or assembly.levels(),
        assembly.spec.shape,
        count,
        seed,
        batch_size or assembly.recipe.sample.batch_size,
        labels_for(assembly, count, labels),
    )


def grid_levels(assembly: Assembly, grid: Grid, steps: int | None, start: float | None = None) -> list[Level]:
    """Return the levels of a grid on the schedule of a recipe.

    Args:
        assembly: The objects of the recipe.
        grid: The grid.
        steps: Number of steps; None takes the number of the recipe.
        start: The time to start from; default that of the recipe.

    Returns:
        The levels, noisiest first.

    Raises:
        ArgumentError: `start` is not a time of the schedule.
    """
    try:
        part = sampled(assembly.schedule, start if start is not None else assembly.recipe.sample.start)
    except ValueError as error:
        schedule = assembly.schedule
        kind = "whole step" if schedule.steps else "time"
        fix = f"choose a {kind} above {schedule.t_clean:g}, up to {schedule.t_noise:g}"
        raise _wrong(str(error), fix) from error
    wanted = steps or assembly.recipe.sample.steps or default_steps(part)
    return grid.levels(part, min(wanted, part.steps) if part.steps and steps is None else wanted)


def labels_for(assembly: Assembly, count: int, labels: Sequence[int | str] | None = None) -> Tensor | None:
    """Return the classes of samples.

    Args:
        assembly: The objects of the recipe.
        count: Number of samples.
        labels: Classes 0..K-1 or their names, or K for the unconditional class, repeated until there are `count`; by
            default those of the recipe, else every class in turn.

    Returns:
        (count,) long, or None for a run without classes.

    Raises:
        ArgumentError: The run has no classes, or not this class.
    """
    classes = assembly.shape.classes
    if classes is None:
        if labels is not None and len(labels):
            raise _wrong("this run has no classes, so labels cannot be chosen", "leave labels out")
        return None
    chosen = labels if labels is not None else assembly.recipe.sample.labels or range(classes)
    names = assembly.data.spec.class_names
    listed = f"{', '.join(names[:MAX_LISTED])}{', ...' if len(names) > MAX_LISTED else ''}"
    by_name = f" ({listed})" if names else ""
    allowed = f"labels must be 0-{classes - 1}{by_name}, or {classes} for the unconditional class"
    try:
        numbers = [names.index(one) if isinstance(one, str) else operator.index(one) for one in chosen]
    except (TypeError, ValueError):
        fix = "pass numbers or names of classes" if names else "pass numbers: this run has no names of classes"
        raise _wrong(f"{allowed}, got {chosen!r}", fix) from None
    if not numbers or any(not 0 <= number <= classes for number in numbers):
        raise _wrong(f"{allowed}, got {numbers}", "pass at least one label")
    cycle = torch.tensor(numbers)
    return cycle.repeat(count // len(cycle) + 1)[:count]


def guided(assembly: Assembly, denoise: Denoiser) -> Denoiser:
    """Return the denoiser under the guidance of the recipe."""
    return guide(denoise, assembly.guidance)


def draw_samples(
    denoise: Denoiser,
    plan: SamplingPlan,
    codec: Codec,
    device: torch.device | str,
    *,
    x: Tensor | None = None,
    frames: int = 0,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> SampleBatch:
    """Draw the samples of a plan. An exception that `on_step` raises ends it.

    Args:
        denoise: The denoiser.
        plan: The plan of the samples.
        codec: Decodes the samples.
        device: Device to compute on.
        x: (N, C, *S) examples to start from instead of noise: z = alpha encode(x) + sigma eps at the noisiest level.
        frames: Number of steps of the first batch to keep, the first and the last included.
        progress: Displays the progress, in samples; a step of a batch counts as its share of them.
        on_step: Called after each step.

    Returns:
        The samples.
    """
    began = time.monotonic()
    noisiest = plan.levels[0]
    recorder = _Recorder(frames)
    parts: list[Tensor] = []
    nfe, shown = 0, progress or Progress()
    shown.start(0, plan.count)

    def watch(step: StepInfo) -> None:
        nonlocal nfe
        nfe = step.nfe
        shown.advance(rows.start + (rows.stop - rows.start) * step.index // step.count)
        if frames and not parts:
            recorder(step)
        if on_step is not None:
            on_step(step)

    for start in range(0, plan.count, plan.batch_size):
        rows = slice(start, min(start + plan.batch_size, plan.count))
        noise = SampleNoise(plan.seed, range(plan.first + rows.start, plan.first + rows.stop))
        z = noise.initial(plan.shape, device)
        if x is None:
            z = float(noisiest.sigma) * z
        else:
            with torch.no_grad():
                z = noisiest.add_noise(codec.encode(x[rows].to(device)), z)
        cond = {} if plan.labels is None else {"label": plan.labels[rows].to(device)}
        z = sample(partial(denoise, **cond), plan.sampler, plan.levels, z, noise=noise, on_step=watch)
        with torch.no_grad():
            parts.append(codec.decode(z.float()).cpu())
    return SampleBatch(torch.cat(parts), plan.labels, nfe, time.monotonic() - began, recorder.trajectory(codec))


@dataclass
class _Recorder:
    """Keeps x and x0 of the first `FRAME_ROWS` samples at about `count` evenly spread steps."""

    count: int
    x: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)

    def __call__(self, step: StepInfo) -> None:
        wanted = {1 + round(k * (step.count - 1) / max(1, self.count - 1)) for k in range(self.count)}
        if step.index in wanted and step.estimate is not None:
            self.x.append(step.x[:FRAME_ROWS].float().cpu())
            self.x0.append(step.estimate.x0[:FRAME_ROWS].float().cpu())
            self.levels.append(step.t)

    def trajectory(self, codec: Codec) -> SampleTrajectory | None:
        if not self.x:
            return None
        x, x0 = (torch.stack([codec.decode(z) for z in kept]) for kept in (self.x, self.x0))
        return SampleTrajectory(x, x0, tuple(self.levels))


def _component(kind: Literal["sampler", "grid"], base: type[Any], given: Any) -> Any:
    """Build the component that a name or mapping describes; a component or None is returned unchanged."""
    if given is None or isinstance(given, base):
        return given
    options = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    if not isinstance(name := options.pop("name", None), str):
        raise _wrong(
            f"{kind} must be a name, a mapping with a name, or a {base.__name__}, got {type(given).__name__}",
            f'pass {kind}="NAME" or {{"name": "NAME", ...}}',
        )
    return build(kind, name, **options)


def require_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ArgumentError unless a value is a whole number in range.

    Args:
        name: Name of the argument, for the message.
        value: The value.
        least: Smallest value.
        most: Largest value; default unbounded.
    """
    limits = f"{least} or more" if most is None else f"between {least} and {most}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise _wrong(f"{name} must be a whole number, {limits}, got {value!r}", f"pass {name} in this range")


def _wrong(message: str, fix: str) -> ArgumentError:
    """Return the error for an argument of sampling that is of the wrong type or out of range."""
    return ArgumentError(message, code="DK019", fix=fix)
