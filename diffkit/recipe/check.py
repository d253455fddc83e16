"""What must fit between the parts of a recipe, found before any compute.

Components are asked through their public attributes and methods; a leaf is never recognised by its class. Where a
part has a fault of its own, checks that need it are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from ..errors import DiffkitError, LevelError, Mark, RecipeError
from ..level import Level
from ..network import Shape
from ..schedule import Schedule
from .check_options import OPTION_CHECKS
from .resolve import Resolver
from .start import default_steps, sampled
from .view import View

TOLERATED = 1e-4
REFUSED = 0.1
ASKED = ("parameterization", "objective.weighting", "objective.times", "objective")


def check(resolver: Resolver) -> tuple[list[DiffkitError], list[RecipeError]]:
    """The faults and the warnings."""
    view = View(resolver)
    faults: list[DiffkitError] = []
    warnings: list[RecipeError] = []
    for one in (*CHECKS, *OPTION_CHECKS):
        faults += one(view)
    for fault, fatal in (*_starts(view), *_untrained(view), *_terminal(view)):
        faults.append(fault) if fatal else warnings.append(fault)  # type: ignore[arg-type]
    return faults, warnings


def _singular(view: View) -> Iterator[DiffkitError]:
    """A parameterization that says nothing about x0 at alpha = 0, where training or sampling goes there."""
    schedule, parameterization = view.built("schedule"), view.built("parameterization")
    start = view.value("sample.start")
    if schedule is None or parameterization is None or not schedule.noise.is_noise:
        return
    if start is not None and start < schedule.t_noise:
        return
    x = torch.zeros(1, 1, dtype=torch.float64)
    y = torch.zeros(1, parameterization.out_channels(1), dtype=torch.float64)
    try:
        parameterization.decode(y, x, schedule.noise)
    except LevelError as error:
        yield RecipeError(
            f"schedule {view.name('schedule')} reaches alpha = 0: {error.message}",
            code="DK110",
            where=view.mark("parameterization", "name"),
            fix=error.fix,
            notes=error.notes,
        )
        return
    told = parameterization.c_noise(schedule.noise)
    if told is not None and not math.isfinite(float(told)):
        yield RecipeError(
            f"schedule {view.name('schedule')} reaches alpha = 0: there parameterization "
            f"{view.name('parameterization')} tells the network a noise level that is infinite",
            code="DK110",
            where=view.mark("parameterization", "name"),
            fix="use parameterization x0, or end the schedule earlier (sample.start)",
        )


def _needs(view: View) -> Iterator[DiffkitError]:
    """A sampler or objective that reads what the parameterization does not provide."""
    parameterization = view.built("parameterization")
    if parameterization is None:
        return
    for path in (*(path for path, _, _ in _drawings(view)), "objective"):
        component = view.built(path)
        lacking = [aux for aux in getattr(component, "needs", ()) if aux not in parameterization.provides]
        if lacking:
            names = "parameterization learned-range" if "frac" in lacking else "a parameterization that provides it"
            yield RecipeError(
                f"{path} {view.name(path)} needs {', '.join(lacking)} from the network, and parameterization "
                f"{view.name('parameterization')} gives it one head only",
                code="DK111",
                where=view.mark(path, "variance", "name"),
                fix=f"use {names}, or an option that does not need it (such as variance: small)",
            )


def _untrained(view: View) -> Iterator[tuple[DiffkitError, bool]]:
    """A head of the network that the objective does not train."""
    parameterization, objective = view.built("parameterization"), view.built("objective")
    if parameterization is None or objective is None or not view.value("train.steps", 0):
        return
    for aux in parameterization.provides:
        if aux not in getattr(objective, "needs", ()):
            yield (
                RecipeError(
                    f"parameterization {view.name('parameterization')} gives {aux}, which objective "
                    f"{view.name('objective')} does not train",
                    code="DK119",
                    where=view.mark("objective", "name"),
                    fix="use objective hybrid, or vlb with variance: learned",
                ),
                False,
            )


def _discrete(view: View) -> Iterator[DiffkitError]:
    """Components that are defined by the steps of a discrete schedule only."""
    schedule = view.built("schedule")
    if schedule is None or schedule.steps is not None:
        return
    for path in dict.fromkeys([*ASKED, *(p for sampler, grid, _ in _drawings(view) for p in (sampler, grid))]):
        if getattr(view.built(path), "discrete_only", False):
            yield RecipeError(
                f"{path} {view.name(path)} needs a discrete schedule, and {view.name('schedule')} is continuous",
                code="DK112",
                where=view.mark(path, "name"),
                fix="use a schedule with steps (linear, cosine), or another component",
            )


def _drawings(view: View) -> list[tuple[str, str, str]]:
    """Paths of sampler, grid and steps, of sampling and, where it differs, of evaluation."""
    keys = ("sampler", "grid", "steps")
    own = [f"evaluate.{key}" if view.value(f"evaluate.{key}") is not None else f"sample.{key}" for key in keys]
    drawings = {("sample.sampler", "sample.grid", "sample.steps"), (own[0], own[1], own[2])}
    return sorted(drawings, reverse=True)


def _steps(view: View) -> Iterator[DiffkitError]:
    """More sampling steps than the schedule has."""
    schedule, start = view.built("schedule"), view.value("sample.start")
    if schedule is None or schedule.steps is None:
        return
    most = schedule.steps if start is None else min(schedule.steps, int(start))
    for path in dict.fromkeys(path for _, _, path in _drawings(view)):
        n = view.value(path)
        if n is not None and n > most:
            yield RecipeError(
                f"{path} is {n}, and only {most} steps lie on the schedule",
                code="DK114",
                where=view.mark(path),
                choices=f"1 to {most}",
                fix=f"steps: {most}, or a schedule with more steps",
            )


def _starts(view: View) -> Iterator[tuple[DiffkitError, bool]]:
    """Where sampling starts: a level that grid and sampler can take, and no cleaner than where training ended."""
    schedule, start = view.built("schedule"), view.value("sample.start")
    if schedule is None:
        return
    try:
        part = sampled(schedule, start)
    except ValueError as error:
        yield RecipeError(f"sample.{error}", code="DK116", where=view.mark("sample.start")), True
        return
    for sampler, grid, steps in _drawings(view):
        yield from _start(view, part, (sampler, grid, steps))


def _start(view: View, part: Schedule, paths: tuple[str, str, str]) -> Iterator[tuple[DiffkitError, bool]]:
    schedule, sampler, grid = view.built("schedule"), view.built(paths[0]), view.built(paths[1])
    n = view.value(paths[2]) or default_steps(part)
    if grid is None or (part.steps is None and grid.discrete_only) or (part.steps is not None and n > part.steps):
        return
    if part.noise.is_noise and not grid.reaches_noise:
        yield _cannot_start(view, paths[1], schedule.t_noise), True
        return
    try:
        first = grid.levels(part, n)[0]
    except (DiffkitError, ValueError, ArithmeticError) as error:
        message, fix = (error.message, error.fix) if isinstance(error, DiffkitError) else (str(error), None)
        where = view.mark(paths[1], "name")
        yield RecipeError(f"{paths[1]} {view.name(paths[1])}: {message}", code="DK116", where=where, fix=fix), True
        return
    if first.is_noise and sampler is not None and not sampler.reaches_noise:
        yield _cannot_start(view, paths[0], schedule.t_noise), True
    yield from _deficit(view, first, schedule.noise, paths[1])


def _deficit(view: View, first: Level, end: Level, path: str) -> Iterator[tuple[DiffkitError, bool]]:
    """A grid that starts cleaner than training ended: there x is not the noise that sampling starts from."""
    alpha, trained = float(first.alpha) / float(first.scale), float(end.alpha) / float(end.scale)
    bias = alpha - trained
    if bias <= TOLERATED:
        return
    fatal = bias > REFUSED and not view.value("sample.allow_mismatch", False)
    yield (
        RecipeError(
            f"sampling starts cleaner than training ended: sqrt(alpha_bar) is {alpha:.3g} at the start of the grid "
            f"and {trained:.3g} at the end of the schedule; samples lose {bias:.2g} of the mean of the data",
            code="DK113",
            where=view.mark(path, "name"),
            fix="use grid trailing or linspace" + (", or allow it with sample.allow_mismatch: true" if fatal else ""),
            notes=["background: arXiv:2305.08891, section 3.3"],
        ),
        fatal,
    )


def _terminal(view: View) -> Iterator[tuple[DiffkitError, bool]]:
    """A schedule that ends far from noise, as one does whose betas were meant for more steps."""
    schedule = view.built("schedule")
    if schedule is None or view.value("sample.start") is not None:
        return
    alpha = float(schedule.noise.alpha) / float(schedule.noise.scale)
    if alpha > REFUSED:
        yield (
            RecipeError(
                f"schedule {view.name('schedule')} ends far from noise: sqrt(alpha_bar) is {alpha:.3g} there, and "
                "sampling starts without that share of the mean of the data",
                code="DK120",
                where=view.mark("schedule", "steps", "name"),
                fix="use more steps, or larger betas: they are not rescaled with steps",
                notes=["background: arXiv:2305.08891, section 2"],
            ),
            False,
        )


def _cannot_start(view: View, path: str, t_noise: float) -> RecipeError:
    return RecipeError(
        f"{path} {view.name(path)} cannot start at alpha = 0, where schedule {view.name('schedule')} ends",
        code="DK116",
        where=view.mark(path, "chart", "name"),
        fix=f"start before it: sample.start: {0.999 * t_noise if t_noise <= 1 else int(t_noise) - 1:g}; "
        "or use one that can (ddim, grid trailing)",
    )


def _classes(view: View) -> Iterator[DiffkitError]:
    """Labels where the data has none, labels out of range, and guidance whose null class was never trained."""
    shape = view.shape
    if not isinstance(shape, Shape):
        return
    dropout, labels = view.value("data.label_dropout", 0.0), view.value("sample.labels")
    if shape.classes is None:
        for path, given in (("data.label_dropout", dropout), ("sample.labels", labels)):
            if given:
                yield _label_fault(f"{path} is given, and data {view.name('data')} has no labels", view.mark(path))
        return
    high = [label for label in labels or () if label >= shape.classes]
    if high:
        message = f"sample.labels holds {high[0]}, and data {view.name('data')} has {shape.classes} classes"
        yield _label_fault(message, view.mark("sample.labels"), f"0 to {shape.classes - 1}")
    for path in view.paths("sample.guidance"):
        if getattr(view.built(path), "needs_null", False) and dropout == 0.0 and view.value("train.steps", 0) > 0:
            yield RecipeError(
                f"guidance {view.name(path)} asks the network without a label, and label_dropout 0 never trains that",
                code="DK115",
                where=view.mark(path, "name"),
                fix="data.label_dropout: 0.1",
            )


def _label_fault(message: str, where: Mark, choices: str = "") -> RecipeError:
    return RecipeError(message, code="DK115", where=where, choices=choices, fix=None if choices else "remove it")


CHECKS: tuple[Callable[[View], Iterator[DiffkitError]], ...] = (_singular, _needs, _discrete, _steps, _classes)
