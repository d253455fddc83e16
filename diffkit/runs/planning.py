"""Requests for samples, and the plans that they become with the objects of a recipe."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import ComponentSpec
from ..data import LABEL, stack
from ..errors import ArgumentError, DataError
from ..grid import Grid
from ..guidance import Guidance
from ..level import Level
from ..recipe.assembly import Assembly, build
from ..recipe.condition_checks import without_dropout
from ..recipe.load import kept_grid, preset_of
from ..sampler import Sampler
from ..schedule import sampled
from .editing import edit_of, inpainting_condition, inpainting_values, latents_of, read_latents, shape_of, strength_of
from .sampling import SamplingPlan

MAX_SEED = 2**63 - 1
TEXT, CFG, INNER = "text", "cfg", "inner"
"""The condition of `prompt`, the guidance of `scale` and `negative`, and the option that is a guidance around which
another one is applied."""

Component = str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A request for samples. An argument that is None is taken from the recipe.

    Args:
        count: Number of samples, at least 1; None: as many as `latents` or `x`, else `sample.count` of the recipe, or
            as many as there are texts if these are more.
        sampler: A sampler, its name, or a mapping of its name and options.
        grid: A grid, its name, or a mapping of its name and options.
        steps: Number of sampling steps.
        seed: 0 to 2^63 - 1. Sample i of a seed is the same in every batch.
        weights: "raw", "ema", the name of an average, or "width:W".
        labels: Classes by number or name, repeated until there are `count`; short for `conditions={"label": ...}`.
        conditions: Conditions by name, as `read_condition` takes them, repeated until there are `count`. If some are
            given, the others are null.
        guidance: Changes of the guidance of the recipe: by name of a guidance its options, or only its `scale`.
        x: Examples (count, C, *S) to start from instead of noise (image to image), as `as_examples` takes them.
        start: The time whose noise is added to `x`; required with `x`, unless `levels` are given.
        levels: The levels that the sampler visits, noisiest first, in place of `grid`, `steps` and `start`.
        prompt: Short for `conditions={"text": prompt}`.
        negative: Short for `guidance={"cfg": {"negative": {"text": negative}}}`: what samples should not show.
        scale: Short for `guidance={"cfg": scale}`.
        size: The size of the samples, such as (height, width), if network and codec take sizes other than that of the
        data.
        image: A picture to start from: a file or a picture of Pillow in the mode of the data, or an array (C, H, W) or
            (count, C, H, W), uint8 or floats in the model's range.
        strength: Share of the steps, counted from the end, that image to image makes; default 0.8, with a mask 1.
        mask: The part of `image` to repaint: white pixels of a file or picture, or True in (H, W). The rest stays.
        latents: Start noise before the codec: (C, *S) or (count, C, *S), or a file of it, see `read_latents`.
        adapters: Files of adapters, such as LoRA, each FILE or FILE:WEIGHT.

    Raises:
        ArgumentError: A value is of the wrong type or out of range.
    """

    count: int | None = None
    sampler: Sampler[Any] | Component | None = None
    grid: Grid | Component | None = None
    steps: int | None = None
    seed: int = 0
    weights: str = "ema"
    labels: Sequence[int | str] | None = None
    conditions: Mapping[str, Any] | None = None
    guidance: Mapping[str, Any] | None = None
    x: Tensor | None = None
    start: float | None = None
    levels: Sequence[Level] | None = None
    prompt: str | Sequence[str] | None = None
    negative: str | None = None
    scale: float | None = None
    size: tuple[int, ...] | None = None
    image: Any = None
    strength: float | None = None
    mask: Any = None
    latents: Any = None
    adapters: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.latents, str | Path):
            object.__setattr__(self, "latents", read_latents(Path(self.latents)))
        if self.count is not None:
            require_whole("count", self.count, 1)
        require_whole("seed", self.seed, 0, MAX_SEED)
        if self.steps is not None:
            require_whole("steps", self.steps, 1)
        if not isinstance(self.weights, str):
            raise _wrong(f"weights must be a name, got {type(self.weights).__name__}", 'pass weights="ema" or "raw"')
        if self.start is not None and (isinstance(self.start, bool) or not isinstance(self.start, int | float)):
            raise _wrong(f"start must be a time of the schedule, got {self.start!r}", "pass a number")
        for name in ("conditions", "guidance"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                fix = f"pass {name}={{NAME: ...}}"
                raise _wrong(f"{name} must be a mapping by name, got {type(value).__name__}", fix)
        if self.negative is not None and not isinstance(self.negative, str):
            raise _wrong(f"negative must be a text, got {self.negative!r:.60}", "pass one text for all samples")
        if isinstance(self.scale, float) and not math.isfinite(self.scale):
            raise _wrong(f"scale is {self.scale}", "pass a finite number, such as scale=7.5")
        cfg = (self.guidance or {}).get(CFG, {})
        options = cfg if isinstance(cfg, Mapping) else {"scale": cfg}
        for short, holder, name in (
            ("labels", self.conditions or {}, LABEL),
            ("prompt", self.conditions or {}, TEXT),
            ("scale", options, "scale"),
            ("negative", options, "negative"),
        ):
            if getattr(self, short) is not None and name in holder:
                whole = f"guidance {CFG}" if holder is options else "condition"
                raise _wrong(f"{short} and {name} of the {whole} are both given", "leave one of them out")
        if self.image is None:
            for name in ("mask", "strength"):
                if getattr(self, name) is not None:
                    raise _wrong(
                        f"{name} is given without an image",
                        "pass the picture to change as well: --image FILE, image=...",
                    )
        elif self.x is not None or self.start is not None:
            raise _wrong("image and x or start are both given", "leave x and start out")
        if self.levels is not None:
            self._require_levels(self.levels)
        elif self.x is not None and self.start is None:
            raise _wrong("x requires start, the time whose noise is added to it", "pass start=")

    @property
    def stated(self) -> dict[str, Any]:
        """The conditions, including those given as `labels` or `prompt`."""
        given = dict(self.conditions or {}) | ({} if self.labels is None else {LABEL: self.labels})
        return given | ({} if self.prompt is None else {TEXT: self.prompt})

    @property
    def guided(self) -> dict[str, Any]:
        """The changes of guidance, including those given as `scale` or `negative`."""
        own: dict[str, Any] = {} if self.scale is None else {"scale": self.scale}
        own |= {} if self.negative is None else {"negative": {TEXT: self.negative}}
        given = dict(self.guidance or {})
        if not own:
            return given
        before = given.get(CFG, {})
        return given | {CFG: {**(before if isinstance(before, Mapping) else {"scale": before}), **own}}

    def _require_levels(self, levels: object) -> None:
        """Raise ArgumentError unless there are at least two levels, and nothing else chooses them."""
        others = [name for name in ("grid", "steps", "start") if getattr(self, name) is not None]
        if others:
            raise _wrong(f"levels are given in place of {', '.join(others)}", f"leave {others[0]} out")
        listed = list(levels) if isinstance(levels, list | tuple) else []
        if len(listed) < 2 or not all(isinstance(level, Level) for level in listed):
            fix = "pass two or more, such as run.assembly.levels(20)"
            raise _wrong(f"levels must be a list of Level, noisiest first, got {type(levels).__name__}", fix)


def plan_request(assembly: Assembly, request: SampleRequest, given: Mapping[str, Tensor] | None = None) -> SamplingPlan:
    """Resolve a request with the objects of a recipe.

    Args:
        assembly: The objects of the recipe.
        request: The request.
        given: Raw conditions that were read before; default: those of the request.

    Returns:
        The plan.

    Raises:
        ArgumentError: The request does not fit the recipe: conditions, `start`, or the type of a component.
        RecipeError: The name or an option of a component is unknown.
    """
    sampler, grid, start_scale, network_time = _drawing(assembly, request)
    plan = plan_sampling(
        assembly,
        count=count_of(assembly, request),
        seed=request.seed,
        sampler=sampler,
        levels=request.levels or grid_levels(assembly, grid, request.steps, request.start),
        given=request.stated,
        raw=given,
        guidance=changed_guidance(assembly, request.guided),
        start_scale=start_scale,
        network_time=network_time,
    )
    return _edited(assembly, plan, request)


def count_of(assembly: Assembly, request: SampleRequest) -> int:
    """Return the number of samples of a request."""
    if request.count is not None:
        return request.count
    given = (np.shape(one) for one in (request.latents, request.x) if one is not None)
    many = (shape[0] for shape in given if len(shape) > len(assembly.spec.shape))
    texts = [len(one) for one in request.stated.values() if isinstance(one, list | tuple) and _are_texts(one)]
    return next(many, max([1 if request.latents is not None else assembly.recipe.sample.count, *texts]))


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


def _edited(assembly: Assembly, plan: SamplingPlan, request: SampleRequest) -> SamplingPlan:
    """Return the plan with the size, the picture and the start noise of a request."""
    shape, held = shape_of(assembly, request.size), inpainting_condition(assembly)
    size, edit, levels, given = tuple(request.size or assembly.data.spec.size), None, plan.levels, dict(plan.given)
    if request.image is not None:
        taken = strength_of(request.strength, request.mask, len(levels) - 1)
        levels = levels[len(levels) - 1 - taken :]
        edit = edit_of(assembly, size, plan.count, request.image, request.mask, request.strength, shape)
    if held is not None and edit is not None and edit.unknown is not None:
        given[held] = inpainting_values(edit, plan.count)
    elif held is not None and held not in given and shape != plan.shape:
        given[held] = torch.full((plan.count, assembly.data.spec.channels + 1, *size), 255, dtype=torch.uint8)
    latents = None if request.latents is None else latents_of(request.latents, shape, plan.count)
    return replace(plan, shape=shape, levels=levels, given=given, edit=edit, latents=latents)


def _drawing(assembly: Assembly, request: SampleRequest) -> tuple[Sampler[Any], Grid, str, str]:
    """Return sampler, grid, start_scale and network_time of a request.

    For another sampler than that of the recipe, or one with a grid, the preset of the recipe chooses the others as far
    as the request does not; a sampler without this preset has the defaults of a recipe.
    """
    section, stated = assembly.recipe.sample, _named(request.sampler)
    sampler = _component("sampler", Sampler, request.sampler) or assembly.sampler
    own, other = type(assembly.sampler), type(sampler)
    if section.preset is None or request.sampler is None or (own is other and request.grid is None):
        if section.preset is not None and isinstance(stated, Mapping):
            sampler = _component("sampler", Sampler, {**_stated(section.sampler), **stated})
        grid = _component("grid", Grid, request.grid) or assembly.grid
        return sampler, grid, section.start_scale, section.network_time
    given = _named(request.grid) or kept_grid(_stated(section.grid), section.preset, own, other)
    name = given.get("name") if isinstance(given, Mapping) else None
    filled = preset_of(other, section.preset, name) or {"grid": {"name": name or "trailing"}}
    if isinstance(stated, Mapping) and "sampler" in filled:
        sampler = _component("sampler", Sampler, {**filled["sampler"], **stated})
    grid = given if isinstance(given, Grid) else _component("grid", Grid, {**filled["grid"], **given})
    return sampler, grid, filled.get("start_scale", "sigma"), filled.get("network_time", "exact")


def _named(given: Any) -> Any:
    """Return the mapping of a component that is given by its name; anything else unchanged."""
    return {"name": given} if isinstance(given, str) else given


def plan_sampling(
    assembly: Assembly,
    *,
    count: int,
    seed: int,
    sampler: Sampler[Any] | None = None,
    levels: Sequence[Level] | None = None,
    given: Mapping[str, Any] | None = None,
    raw: Mapping[str, Tensor] | None = None,
    guidance: tuple[Guidance, ...] | None = None,
    batch_size: int | None = None,
    start_scale: str | None = None,
    network_time: str | None = None,
) -> SamplingPlan:
    """Return the plan for samples. Each argument that is left out is taken from the recipe.

    Args:
        assembly: The objects of the recipe.
        count: Number of samples.
        seed: Seed of the noise.
        sampler: The sampler.
        levels: The levels that the sampler visits, noisiest first.
        given: Conditions by name, as `read_condition` takes them.
        raw: Raw conditions that were read before, in place of `given`.
        guidance: The guidance.
        batch_size: Samples drawn at a time.
        start_scale: Scale of the noise to start from.
        network_time: Whether the network receives whole times.

    Returns:
        The plan.

    Raises:
        ArgumentError: `given` holds a condition or a value that the run does not have.
    """
    section = assembly.recipe.sample
    return SamplingPlan(
        sampler or assembly.sampler,
        levels or assembly.levels(),
        assembly.spec.shape,
        count,
        seed,
        batch_size or section.batch_size,
        assembly.conditions,
        conditions_for(assembly, count, given or {}) if raw is None else raw,
        assembly.guidance if guidance is None else guidance,
        start_scale=start_scale or section.start_scale,
        network_time=network_time or section.network_time,
    )


def evaluation_plan(
    assembly: Assembly, *, count: int, seed: int, levels: Sequence[Level], batch_size: int | None = None
) -> SamplingPlan:
    """Return the plan for the samples of an evaluation, by its sampler. Where the evaluation has a sampler or a grid of
    its own, the preset of the recipe gives start_scale and network_time for these.

    Args:
        assembly: The objects of the recipe.
        count: Number of samples.
        seed: Seed of the noise.
        levels: The levels that the sampler visits, noisiest first.
        batch_size: Samples drawn at a time; default that of the recipe.

    Returns:
        The plan.
    """
    preset, own = assembly.recipe.sample.preset, type(assembly.sampler)
    other, grid = type(assembly.evaluation_sampler), assembly.recipe.evaluate.grid
    start_scale, network_time = None, None
    if preset is not None and (other is not own or grid is not None):
        filled = preset_of(other, preset, None if grid is None else grid.name) or {}
        start_scale, network_time = filled.get("start_scale", "sigma"), filled.get("network_time", "exact")
    return plan_sampling(
        assembly,
        count=count,
        seed=seed,
        sampler=assembly.evaluation_sampler,
        levels=levels,
        batch_size=batch_size,
        start_scale=start_scale,
        network_time=network_time,
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
    most = grid.all_steps(part)
    wanted = steps or assembly.recipe.sample.steps or most
    return grid.levels(part, min(wanted, most) if part.steps and steps is None else wanted)


def conditions_for(assembly: Assembly, count: int, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the raw conditions of samples: those that are given, else those of the recipe, else the usual ones.

    If some conditions are given, the others are null. The usual ones are every class in turn, or, for a model with
    further conditions, the conditions of held-out examples in their order.

    Args:
        assembly: The objects of the recipe.
        count: Number of samples.
        given: Conditions by name, as `read_condition` takes them.

    Returns:
        (count, ...) by name; conditions that are absent are null.

    Raises:
        ArgumentError: The run does not have a condition or a value, or conditions must be given because there are no
            examples.
    """
    own, section = assembly.conditions, assembly.recipe.sample
    if LABEL in given and LABEL not in own.conditioners:
        if isinstance(given[LABEL], Sized) and not len(given[LABEL]):
            return {}
        raise _wrong("this run has no classes, so labels cannot be chosen", "leave labels out")
    stated = dict(given) or dict(section.conditions) | ({} if section.labels is None else {LABEL: section.labels})
    if not stated and own.conditioners.keys() == {LABEL}:
        stated = {LABEL: range(own.specs[LABEL].classes or 0)}
    if stated or not own.conditioners:
        return {name: own.read(name, value, count) for name, value in stated.items()}
    try:
        split = (
            assembly.data.split("held-out") if len(assembly.data.split("held-out")) else assembly.data.split("train")
        )
        raw = stack(split, [i % len(split) for i in range(count)])[1]
    except DataError as error:
        names = ", ".join(own.conditioners)
        fix = "pass the conditions, such as --condition NAME=VALUE; " + (error.fix or "")
        raise _wrong(f"the conditions {names} are taken from examples, but {error.message}", fix) from error
    return {name: raw[name] for name in own.conditioners if name in raw}


def changed_guidance(assembly: Assembly, changes: Mapping[str, Any]) -> tuple[Guidance, ...]:
    """Return the guidance of a recipe with other options, also of one that is the `inner` of another.

    A guidance that the recipe does not have is applied first, or around the one that its `inner` names.

    Args:
        assembly: The objects of the recipe.
        changes: By name of a guidance its options, or only its `scale`.

    Returns:
        The guidance in the order of its application.

    Raises:
        RecipeError: A name or an option is unknown.
        ArgumentError: The guidance compares with a null that was not trained.
    """
    specs, built = [_stated(spec) for spec in assembly.recipe.sample.guidance], list(assembly.guidance)
    for name, change in changes.items():
        options = dict(change) if isinstance(change, Mapping) else {"scale": change}
        at, spec = next(
            ((i, found) for i, one in enumerate(specs) if (found := _with_options(one, name, options))), (None, None)
        )
        if spec is None:
            spec, given = {"name": name, **options}, options.get(INNER)
            inner = {"name": given} if isinstance(given, str) else given if isinstance(given, Mapping) else {}
            at = next((i for i, one in enumerate(specs) if one["name"] == inner.get("name")), None)
            if at is not None:
                spec[INNER] = {**specs[at], **inner}
        made = assembly.build("guidance", spec["name"], **{key: value for key, value in spec.items() if key != "name"})
        dropout, known = assembly.recipe.data.condition_dropout, tuple(assembly.conditions.conditioners)
        lacking = without_dropout(made, known, dropout) if made.needs_null and assembly.recipe.train.steps else []
        if lacking:
            told = f"guidance {name} calls the network without {', '.join(lacking)}"
            raise _wrong(f"{told}, which condition_dropout 0 never trained", "train with data.condition_dropout: 0.1")
        kept = slice(0, 0) if at is None else slice(at, at + 1)
        specs[kept], built[kept] = [spec], [made]
    return tuple(built)


def _stated(spec: ComponentSpec) -> dict[str, Any]:
    """Return the name and the options of a component as a recipe states them."""
    nested = {key: _stated(value) if isinstance(value, ComponentSpec) else value for key, value in spec.options.items()}
    return {"name": spec.name, **nested}


def _with_options(spec: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a guidance with other options for the one of this name, which it is or contains; None without it."""
    if spec["name"] == name:
        return {**spec, **options}
    inner = spec.get(INNER)
    changed = _with_options(inner, name, options) if isinstance(inner, Mapping) else None
    return None if changed is None else {**spec, INNER: changed}


def _component(kind: Literal["sampler", "grid"], base: type[Any], given: Any) -> Any:
    """Build the component that a name or mapping describes; return a component or None unchanged."""
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
