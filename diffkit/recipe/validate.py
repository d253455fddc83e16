"""What must fit between the parts of a recipe, found before any compute.

Components are asked through their public attributes and methods; a leaf is never recognised by its class. Where a
part has a fault of its own, checks that need it are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..config import Config
from ..errors import DiffkitError, LevelError, Mark, PluginError, RecipeError
from ..host import registry
from ..level import Level
from ..network import Shape
from ..schedule import Schedule, default_steps, sampled
from .errors import nearest, quote
from .load import Source, raise_all, read
from .resolve import Resolver
from .signature import section_parameters
from .spec import Recipe, Spec

TOLERATED = 1e-4
REFUSED = 0.1
ASKED = ("parameterization", "objective.weighting", "objective.times", "objective")


def load_recipe(source: Source, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a file, under a built-in name, in a YAML text of several lines, or in a mapping.

    `overrides` are texts `path=value`, applied in turn. Every component named is imported and built once on trial,
    networks on the meta device; data files are not needed. Raises RecipeError, whose `errors` are all the faults
    found, each with its place; its `exit_code` is 4 where only plugins are at fault.
    """
    text, root = read(source, overrides)
    resolver = Resolver(root)
    recipe = resolver.read(Recipe)
    found, warnings = check(resolver)
    raise_all([*resolver.faults, *check_requires(resolver), *found], f"{root.mark.file} is not a valid recipe")
    assert recipe is not None
    recipe._text, recipe._root = text, root
    recipe._warnings, recipe._data_error = tuple(warnings), resolver.data_error
    return recipe


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
            names = (
                "parameterization learned-range"
                if "variance_fraction" in lacking
                else "a parameterization that provides it"
            )
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


def _dead(message: str, where: Mark, fix: str) -> RecipeError:
    return RecipeError(message, code="DK117", where=where, fix=fix)


def _contradiction(message: str, where: Mark, fix: str) -> RecipeError:
    return RecipeError(message, code="DK118", where=where, fix=fix)


def _warmup(view: View) -> Iterator[DiffkitError]:
    steps, warmup = view.value("train.steps"), view.value("train.warmup", 0)
    if steps and warmup > steps:
        yield _contradiction(
            f"train.warmup is {warmup}, longer than the {steps} steps of the training",
            view.mark("train.warmup"),
            f"warmup: {steps // 10}",
        )


def _decay(view: View) -> Iterator[DiffkitError]:
    if view.value("train.schedule.end", 0.0) and view.value("train.schedule.name") == "constant":
        fix = "remove it, or name: linear or cosine"
        yield _dead("train.schedule.end is not read by a constant schedule", view.mark("train.schedule.end"), fix)


def _accumulate(view: View) -> Iterator[DiffkitError]:
    batch, parts = view.value("train.batch_size"), view.value("train.accumulate")
    if batch and parts and batch % parts:
        yield _contradiction(
            f"train.accumulate is {parts}, which does not divide the batch of {batch}",
            view.mark("train.accumulate"),
            f"accumulate: {max(d for d in range(1, parts) if batch % d == 0)}",
        )


def _ema(view: View) -> Iterator[DiffkitError]:
    averages = view.value("train.ema", ())
    many = len(averages) > 1
    for index, ema in enumerate(averages):
        where = view.mark(f"train.ema.{index}" if many else "train.ema")
        said = [key for key in ("decay", "half_life", "power") if getattr(ema, key) is not None]
        if len(said) != 1:
            told = f"train.ema gives {' and '.join(said)}" if said else "train.ema says nothing of how long it averages"
            yield _contradiction(told, where, "give one of decay, half_life, power")
        elif ema.warmup and ema.power is not None:
            yield _dead(
                "train.ema.warmup is not read by a power-law average, which starts at the start", where, "remove it"
            )
    names = [ema.name for ema in averages]
    for index, name in enumerate(names):
        if name in (*names[:index], "raw"):
            where = view.mark(f"train.ema.{index}" if many else "train.ema")
            fix = "give each a name of its own, other than raw"
            yield _contradiction(f'train.ema: the name "{name}" is taken', where, fix)


def _precision(view: View) -> Iterator[DiffkitError]:
    precision = view.value("train.precision", "auto")
    if precision in ("bf16", "fp16") and getattr(view.built("parameterization"), "full_precision", False):
        yield _contradiction(
            f"parameterization {view.name('parameterization')} cannot be decoded from outputs in {precision}",
            view.mark("train.precision"),
            "precision: fp32, or parameterization eps",
        )


def _channels_last(view: View) -> Iterator[DiffkitError]:
    size = getattr(view.shape, "size", None)
    if view.value("train.channels_last") is True and size is not None and len(size) != 2:
        yield _dead("train.channels_last is for images only", view.mark("train.channels_last"), "remove it")


def _evaluate(view: View) -> Iterator[DiffkitError]:
    if view.value("evaluate.metrics", ()):
        return
    for key in ("sampler", "grid", "steps", "count", "batch_size"):
        if view.value(f"evaluate.{key}") is not None:
            yield _dead(f"evaluate.{key} without metrics", view.mark(f"evaluate.{key}"), "metrics: [frechet]")


OPTION_CHECKS: tuple[Callable[[View], Iterator[DiffkitError]], ...] = (
    _warmup,
    _decay,
    _accumulate,
    _ema,
    _precision,
    _channels_last,
    _evaluate,
)


CLAUSE = re.compile(r"\s*(==|!=|>=|<=|~=|>|<)\s*v?([0-9]+(?:\.[0-9]+)*)\s*\Z", re.ASCII)
RELEASE = re.compile(r"v?([0-9]+(?:\.[0-9]+)*)(.*)\Z", re.ASCII)
Version = tuple[tuple[int, ...], bool]


def check_requires(resolver: Resolver) -> Iterator[DiffkitError]:
    """What of `requires` is not met, or cannot be understood."""
    required: dict[str, str] = resolver.values.get("requires", {})
    for name, wanted in required.items():
        node = resolver.root.at("requires")
        entry = node.child(name) if node else None
        mark = entry.mark if entry else resolver.root.mark
        if not all(CLAUSE.match(clause) for clause in wanted.split(",")):
            message = f"{quote(wanted)} is not a range of versions"
            yield RecipeError(message, code="DK108", where=mark, fix='write a range such as ">=0.1,<1"')
            continue
        plugins = [plugin for plugin in registry().plugins if plugin.answers_to(name)]
        if not plugins:
            near = nearest(name, [n for p in registry().plugins for n in (p.distribution, p.name) if n])
            hint = f'did you mean "{near}"?' if near else None
            message = f"this recipe requires {name} {wanted}, which is not installed"
            yield PluginError(message, code="DK108", where=mark, hint=hint, fix=f'pip install "{name}{wanted}"')
        for plugin in plugins[:1]:
            if plugin.status != "ok":
                message = f"this recipe requires {name}, which is {plugin.status} ({plugin.reason})"
                yield PluginError(message, code="DK108", where=mark, fix=f"diffkit plugins --why {plugin.name}")
            elif plugin.version is not None and not satisfies(plugin.version, wanted):
                message = f"this recipe requires {name} {wanted}, {plugin.version} is installed"
                yield PluginError(message, code="DK108", where=mark, fix=f'pip install "{name}{wanted}"')


def satisfies(version: str, wanted: str) -> bool:
    """Whether `version` lies in the range `wanted`, comma-separated clauses of release numbers (PEP 440 without epochs
    and labels: a pre-release lies just before its release, everything else counts as the release)."""
    have = _version(version)
    return all(_holds(have, *match.groups()) for clause in wanted.split(",") if (match := CLAUSE.match(clause)))


def _version(text: str) -> Version:
    match = RELEASE.match(text.strip())
    if match is None:
        return (), False
    final = not re.match(r"[-_.]?(a|b|c|rc|alpha|beta|pre|dev)", match[2])
    return _numbers(match[1]), final


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(part[:18]) for part in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _holds(have: Version, sign: str, text: str) -> bool:
    want: Version = (_numbers(text), True)
    if sign == "~=":
        stem = tuple(int(part[:18]) for part in text.split("."))[:-1]
        padded = (*have[0], *(0,) * len(stem))
        return have >= want and padded[: len(stem)] == stem
    if sign == "<":
        return have < (want[0], False)
    tests = {"==": have == want, "!=": have != want, ">=": have >= want, "<=": have <= want, ">": have > want}
    return tests[sign]


@dataclass(frozen=True)
class View:
    """The state of a validation, also of one that found faults: what failed is None."""

    resolver: Resolver

    @property
    def shape(self) -> object:
        """The Shape of what diffuses, None where data or codec could not tell."""
        return self.resolver.shape()

    def built(self, path: str) -> Any:
        """The trial object of the component at `path`."""
        return self.resolver.built.get(path)

    def paths(self, path: str) -> list[str]:
        """Paths of the trial objects in the list at `path`."""
        return [at for at in self.resolver.built if at == path or at.rpartition(".")[0] == path]

    def value(self, path: str, default: Any = None) -> Any:
        """The value at `path`: what is written, else what the section has as default; `default` where it failed."""
        if path in self.resolver.values:
            return self.resolver.values[path]
        return default if self.resolver.root.at(path) is not None else _default(path, default)

    def given(self, path: str) -> bool:
        """Whether the recipe says anything at `path`."""
        return self.resolver.root.at(path) is not None

    def name(self, path: str) -> str:
        """The name of the component at `path`."""
        return self.resolver.names.get(path, "")

    def mark(self, path: str, *keys: str) -> Mark:
        """Where the first of `keys` stands below `path`, else `path` itself, else what it would belong to."""
        root = self.resolver.root
        for key in keys:
            if (node := root.at(f"{path}.{key}")) is not None:
                return node.mark
        while path:
            if (node := root.at(path)) is not None:
                return node.mark if not isinstance(node.value, dict) else node.label
            path = path.rpartition(".")[0]
        return root.mark


def _default(path: str, default: Any) -> Any:
    cls: type[Config] = Spec
    *sections, last = path.split(".")
    for name in sections:
        found = next((p for p in section_parameters(cls) if p.name == name and p.role == "section"), None)
        if found is None:
            return default
        cls = found.target
    field = next((p for p in section_parameters(cls) if p.name == last), None)
    return default if field is None or field.required else field.default
