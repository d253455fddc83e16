"""Check that the parts of a recipe fit each other, before anything is computed.

The checks read the public attributes and methods of components, never their classes. If a part has a fault of its
own, the checks that need it are left out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..codec import Identity, TrainableCodec
from ..conditioner import Conditions
from ..config import Config
from ..data import LABEL
from ..errors import DiffkitError, LevelError, Mark, RecipeError, UsageError
from ..level import Level
from ..metric import MEASURES, WORDS, ModelSetting
from ..network import Shape
from ..schedule import Schedule, sampled
from .construct import locate
from .signature import section_parameters
from .spec import recipe_class
from .yaml import Node

TOLERATED_BIAS = 1e-4
"""Share of the mean of the data that sampling may lose at its start without a warning."""
MAX_BIAS = 0.1
"""Share above which a recipe is refused unless `sample.allow_mismatch` is set."""


@dataclass(frozen=True)
class View:
    """The state of a validation, also of one that found faults: a part that failed is None.

    `values` and `names` (of components) are by path, as are the objects in `parts`; `shape` describes the inputs and
    outputs of the network, and `conditions` holds the conditioners; `entries` are the written options of components,
    by path. `warnings` collects what is allowed, but probably not meant.
    """

    root: Node
    values: Mapping[str, Any]
    names: Mapping[str, str]
    parts: Mapping[str, Any]
    shape: Shape | None
    conditions: Conditions | None
    entries: Mapping[str, Mapping[str, Node]] = field(default_factory=dict)
    warnings: list[RecipeError] = field(default_factory=list)

    def built(self, path: str) -> Any:
        """Return the object of the component at `path`."""
        return self.parts.get(path)

    def items(self, path: str) -> list[str]:
        """Return the paths of the objects in the list at `path`."""
        return [at for at in self.parts if at.rpartition(".")[0] == path]

    def value(self, path: str, default: Any = None) -> Any:
        """Return the value at `path`: the written one, else the default of its section, else `default`.

        Raises FailedValueError if the written value has a fault of its own.
        """
        if path in self.values:
            return self.values[path]
        if (node := self.root.at(path)) is not None and node.value is not None:
            raise FailedValueError
        return _default(recipe_class(self.root), path, default)

    def name(self, path: str) -> str:
        """Return the name of the component at `path`."""
        return self.names.get(path, "")

    def title(self, path: str) -> str:
        """Return the path and the name of the component at `path`."""
        return f"{path} {self.name(path)}"

    def mark(self, path: str, *keys: str) -> Mark:
        """Return the place of the first key in `keys` that the recipe gives below `path`, else of `path`, else of its
        parent.
        """
        for key in keys:
            if (node := self.root.at(f"{path}.{key}")) is not None:
                return node.mark
        while path:
            if (node := self.root.at(path)) is not None:
                return node.mark if not isinstance(node.value, dict) else node.label
            path = path.rpartition(".")[0]
        return self.root.mark

    def fault(self, code: str, message: str, where: str | tuple[str, ...], fix: str | None, **more: Any) -> RecipeError:
        """Return a fault with its place in the recipe.

        Args:
            code: the code DKnnn.
            message: the fault.
            where: a path, or a path and keys, the first key that the recipe gives is the place.
            fix: the fix, or None.
            **more: further arguments of `RecipeError`.

        Returns:
            The error.
        """
        mark = self.mark(where) if isinstance(where, str) else self.mark(*where)
        return RecipeError(message, code=code, where=mark, fix=fix, **more)


Check = Callable[[View], Iterable[RecipeError]]
"""A check: the faults of a recipe; warnings are added to the view."""


class FailedValueError(Exception):
    """Raised in a check that reads a value with a fault of its own: the check is left out."""


def _default(cls: type[Config], path: str, default: Any) -> Any:
    *sections, last = path.split(".")
    for name in sections:
        found = next((p for p in section_parameters(cls) if p.name == name and p.role == "section"), None)
        if found is None:
            return default
        cls = found.target
    option = next((p for p in section_parameters(cls) if p.name == last), None)
    return default if option is None or option.required else option.default


def check(view: View, checks: Iterable[Check]) -> tuple[list[RecipeError], list[RecipeError]]:
    """Apply checks; return the faults and the warnings."""
    faults: list[RecipeError] = []
    for one in checks:
        with contextlib.suppress(FailedValueError):
            faults.extend(one(view))
    return faults, view.warnings


def alpha_zero(view: View) -> Iterator[RecipeError]:
    """The parameterization must determine x0 at alpha = 0 if training or sampling reaches it."""
    schedule, parameterization = view.built("schedule"), view.built("parameterization")
    start = view.value("sample.start")
    if schedule is None or parameterization is None or not schedule.noise.is_noise:
        return
    if start is not None and start < schedule.t_noise:
        return
    reached, where = f"{view.title('schedule')} reaches alpha = 0", ("parameterization", "name")
    x = torch.zeros(1, 1, dtype=torch.float64)
    y = torch.zeros(1, parameterization.out_channels(1), dtype=torch.float64)
    try:
        parameterization.decode(y, x, schedule.noise)
    except LevelError as error:
        yield view.fault("DK110", f"{reached}: {error.message}", where, error.fix, notes=error.notes)
        return
    c_noise = parameterization.c_noise(schedule.noise)
    if c_noise is not None and not math.isfinite(float(c_noise)):
        message = f"{reached}, where {view.title('parameterization')} gives the network an infinite c_noise"
        fix = "use parameterization x0, or start sampling with less noise (sample.start)"
        yield view.fault("DK110", message, where, fix)


def outputs_that_are_needed(view: View) -> Iterator[RecipeError]:
    """The parameterization must provide the entries of aux that samplers and objective read."""
    parameterization = view.built("parameterization")
    if parameterization is None:
        return
    name = view.title("parameterization")
    for path in (*(path for path, _, _ in _drawings(view)), "objective"):
        lacking = [aux for aux in getattr(view.built(path), "needs", ()) if aux not in parameterization.provides]
        if lacking:
            message = f"{path} {view.name(path)} needs {', '.join(lacking)}, which {name} does not provide"
            learned = "variance_fraction" in lacking
            other = "parameterization learned-range" if learned else "a parameterization that provides it"
            fix = f"use {other}, or an option that does not need it (such as variance: small)"
            yield view.fault("DK111", message, (path, "variance", "name"), fix)


def outputs_that_are_trained(view: View) -> Iterable[RecipeError]:
    """Warn about an output of the network that the objective does not train."""
    parameterization, objective = view.built("parameterization"), view.built("objective")
    if parameterization is not None and objective is not None and view.value("train.steps", 0):
        untrained = [aux for aux in parameterization.provides if aux not in getattr(objective, "needs", ())]
        if untrained:
            provider = view.title("parameterization")
            message = f"{view.title('objective')} does not train {', '.join(untrained)}, which {provider} provides"
            fix = "use objective hybrid, or vlb with variance: learned"
            view.warnings.append(view.fault("DK119", message, ("objective", "name"), fix))
    return ()


def trained_schedule(view: View) -> Iterator[RecipeError]:
    """A schedule with trained parameters needs an objective that does not fall by making the levels easy."""
    schedule, objective = view.built("schedule"), view.built("objective")
    trained = isinstance(schedule, torch.nn.Module) and any(one.requires_grad for one in schedule.parameters())
    if trained and objective is not None and not objective.trains_schedule and view.value("train.steps", 0):
        message = f"{view.title('objective')} cannot train {view.title('schedule')}: its loss is least at levels that "
        message += "are easy to denoise"
        fix = "use an objective that bounds the likelihood, such as that of the plugin of the schedule"
        yield view.fault("DK122", message, ("objective", "name"), fix)


def discrete_schedule(view: View) -> Iterator[RecipeError]:
    """Components that are defined by the steps of a schedule need a discrete schedule."""
    schedule = view.built("schedule")
    if schedule is None or schedule.steps is not None:
        return
    drawings = (path for sampler, grid, _ in _drawings(view) for path in (sampler, grid))
    for path in dict.fromkeys(["parameterization", "objective.weighting", "objective.times", "objective", *drawings]):
        if getattr(view.built(path), "discrete_only", False):
            message = f"{path} {view.name(path)} needs a discrete schedule, but {view.name('schedule')} is continuous"
            fix = "use a schedule with steps (linear, cosine), or another component"
            yield view.fault("DK112", message, (path, "name"), fix)


def _drawings(view: View) -> list[tuple[str, str, str]]:
    """Return the paths of sampler, grid and steps of the section `sample` and, if they differ, of `evaluate`."""
    keys = ("sampler", "grid", "steps")
    own = [f"evaluate.{key}" if view.value(f"evaluate.{key}") is not None else f"sample.{key}" for key in keys]
    return list(dict.fromkeys([("sample.sampler", "sample.grid", "sample.steps"), (own[0], own[1], own[2])]))


def sampling_steps(view: View) -> Iterator[RecipeError]:
    """Sampling cannot take more steps than a discrete schedule has."""
    schedule, start = view.built("schedule"), view.value("sample.start")
    if schedule is None or schedule.steps is None:
        return
    most = schedule.steps if start is None else min(schedule.steps, int(start))
    for path in dict.fromkeys(path for _, _, path in _drawings(view)):
        n = view.value(path)
        if n is not None and n > most:
            message = f"{path} is {n}, but the schedule has only {most} steps"
            fix = f"steps: {most}, or a schedule with more steps"
            yield view.fault("DK114", message, path, fix, choices=f"1 to {most}")


def sampling_start(view: View) -> Iterator[RecipeError]:
    """Sampling must start at a level that grid and sampler can take, and no cleaner than training ended."""
    schedule, start = view.built("schedule"), view.value("sample.start")
    if schedule is None:
        return
    try:
        part = sampled(schedule, start)
    except ValueError as error:
        yield view.fault("DK116", f"sample.{error}", "sample.start", None)
        return
    for sampler, grid, steps in _drawings(view):
        yield from _start(view, part, sampler, grid, view.value(steps))


def _start(view: View, part: Schedule, sampler_at: str, grid_at: str, given: int | None) -> Iterator[RecipeError]:
    schedule, sampler, grid = view.built("schedule"), view.built(sampler_at), view.built(grid_at)
    if grid is None:
        return
    steps = given or grid.all_steps(part)
    if (part.steps is None and grid.discrete_only) or (part.steps is not None and steps > part.steps):
        return
    if part.noise.is_noise and not grid.reaches_noise:
        yield _cannot_start(view, grid_at, schedule.t_noise)
        return
    try:
        first = part.level(grid.times(part, steps)[0])
    except (DiffkitError, ValueError, ArithmeticError) as error:
        message, fix = (error.message, error.fix) if isinstance(error, DiffkitError) else (str(error), None)
        yield view.fault("DK116", f"{grid_at} {view.name(grid_at)}: {message}", (grid_at, "name"), fix)
        return
    if first.is_noise and sampler is not None and not sampler.reaches_noise:
        yield _cannot_start(view, sampler_at, schedule.t_noise)
    yield from _mismatch(view, first, schedule.noise, grid_at)


def _cannot_start(view: View, path: str, t_noise: float) -> RecipeError:
    before = f"{0.999 * t_noise if t_noise <= 1 else int(t_noise) - 1:g}"
    message = f"{path} {view.name(path)} cannot start at alpha = 0, where schedule {view.name('schedule')} ends"
    other = f"{path}.chart: flow" if hasattr(view.built(path), "chart") else "sampler ddim and grid trailing"
    fix = f"start with less noise: sample.start: {before}; or use {other}"
    return view.fault("DK116", message, (path, "chart", "name"), fix)


def _mismatch(view: View, first: Level, end: Level, grid_at: str) -> Iterator[RecipeError]:
    """Report a grid whose first level has less noise than the last level of training."""
    alpha, trained = _sqrt_alpha_bar(first), _sqrt_alpha_bar(end)
    bias = alpha - trained
    if bias <= TOLERATED_BIAS:
        return
    refused = bias > MAX_BIAS and not view.value("sample.allow_mismatch", False)
    fault = view.fault(
        "DK113",
        f"sampling starts with less noise than training ended with: sqrt(alpha_bar) is {alpha:.3g} at the start of the "
        f"grid and {trained:.3g} at the end of the schedule; samples lose {bias:.2g} of the mean of the data",
        (grid_at, "name"),
        "use grid trailing or linspace" + (", or allow it with sample.allow_mismatch: true" if refused else ""),
        notes=["background: arXiv:2305.08891, section 3.3"],
    )
    if refused:
        yield fault
    else:
        view.warnings.append(fault)


def end_of_the_schedule(view: View) -> Iterable[RecipeError]:
    """Warn about a schedule that ends far from noise, for example because its betas are meant for more steps."""
    schedule = view.built("schedule")
    if schedule is not None and view.value("sample.start") is None:
        alpha = _sqrt_alpha_bar(schedule.noise)
        if alpha > MAX_BIAS:
            message = f"schedule {view.name('schedule')} ends far from noise: sqrt(alpha_bar) is {alpha:.3g} at its "
            message += "end, and sampling starts without that share of the mean of the data"
            fix = "use more steps, or larger betas: they are not rescaled with steps"
            notes = ["background: arXiv:2305.08891, section 2"]
            view.warnings.append(view.fault("DK120", message, ("schedule", "steps", "name"), fix, notes=notes))
    return ()


def _sqrt_alpha_bar(level: Level) -> float:
    return float(level.alpha) / float(level.scale)


def warmup(view: View) -> Iterator[RecipeError]:
    """The warm-up must end within the training."""
    steps, given = view.value("train.steps"), view.value("train.lr_schedule.warmup", 0)
    if steps and given > steps:
        message = f"train.lr_schedule.warmup is {given}, longer than the {steps} steps of the training"
        yield view.fault("DK118", message, "train.lr_schedule.warmup", f"warmup: {steps // 10}")


def micro_batches(view: View) -> Iterator[RecipeError]:
    """`accumulate` must divide the batch."""
    batch, parts = view.value("train.batch_size"), view.value("train.accumulate")
    if batch and parts and batch % parts:
        message = f"train.accumulate is {parts}, which does not divide train.batch_size {batch}"
        small = [d for d in range(1, math.isqrt(batch) + 1) if batch % d == 0]
        fix = f"accumulate: {max(d for one in small for d in (one, batch // one) if d < parts)}"
        yield view.fault("DK118", message, "train.accumulate", fix)


def averages(view: View) -> Iterator[RecipeError]:
    """Each average needs one length and a unique name."""
    names = {"raw"}
    for index, ema in enumerate(view.value("train.ema", ())):
        at = f"train.ema.{index}"
        given = [key for key in ("decay", "half_life", "power") if getattr(ema, key) is not None]
        if not given:
            yield view.fault("DK118", "train.ema needs one of: decay, half_life, power", at, "decay: 0.9999")
        elif len(given) > 1:
            yield view.fault("DK118", f"train.ema has {' and '.join(given)}", at, "keep one of them")
        elif ema.warmup and ema.power is not None:
            message = "train.ema.warmup has no effect on a power-law average, which needs no warm-up"
            yield view.fault("DK117", message, at, "remove it")
        elif ema.decay is not None and not ema.warmup and 0 < view.value("train.steps", 0) < 5 / (1 - ema.decay):
            message = "train.ema still contains the initial weights at the end: 5 / (1 - decay) is "
            message += f"{5 / (1 - ema.decay):.0f} steps, and the training has {view.value('train.steps')}"
            view.warnings.append(view.fault("DK121", message, at, "warmup: true, or a smaller decay"))
        if ema.name in names:
            fix = "give each average its own name, other than raw"
            yield view.fault("DK118", f'train.ema: the name "{ema.name}" is taken', at, fix)
        names.add(ema.name)


def precision(view: View) -> Iterator[RecipeError]:
    """A parameterization with large factors needs outputs in float32."""
    given = view.value("train.precision", "auto")
    if given in ("bf16", "fp16") and getattr(view.built("parameterization"), "full_precision", False):
        message = f"parameterization {view.name('parameterization')} cannot be decoded from outputs in {given}"
        yield view.fault("DK118", message, "train.precision", "precision: fp32, or parameterization eps")


def channels_last(view: View) -> Iterator[RecipeError]:
    """The memory layout `channels_last` exists for images only."""
    if view.value("train.channels_last") is True and view.shape is not None and len(view.shape.size) != 2:
        yield view.fault("DK117", "train.channels_last is for images only", "train.channels_last", "remove it")


def evaluation_without_metrics(view: View) -> Iterator[RecipeError]:
    """Settings of the evaluation need a metric."""
    for path in (f"evaluate.{key}" for key in ("sampler", "grid", "steps", "count", "batch_size")):
        if view.value("evaluate.metrics") == () and view.value(path) is not None:
            yield view.fault("DK117", f"{path} has no effect without evaluate.metrics", path, "metrics: [frechet]")


def metrics_of_the_task(view: View) -> Iterator[RecipeError]:
    """The metrics measure what a run of the task has."""
    task = view.value("task", "diffusion")
    for path in view.items("evaluate.metrics"):
        if (needs := view.built(path).needs) not in MEASURES[task]:
            message = f"metric {view.name(path)} measures {WORDS[needs]}, which a {task} recipe does not have"
            fix = f"choose a metric of {' or of '.join(WORDS[one] for one in MEASURES[task])}"
            yield view.fault("DK124", message, (path, "name"), fix)


def metrics_of_the_model(view: View) -> Iterator[RecipeError]:
    """A metric that needs the model must fit its data, schedule, parameterization and guidance."""
    data, codec, schedule = (view.built(path) for path in ("data", "codec", "schedule"))
    grid = view.built("evaluate.grid") or view.built("sample.grid")
    if view.shape is None or None in (data, codec, schedule, grid):
        return
    guidance = tuple(view.built(path) for path in view.items("sample.guidance"))
    provides = getattr(view.built("parameterization"), "provides", ())
    encoded = not isinstance(codec, Identity)
    setting = ModelSetting(codec.spec(data.spec), schedule, grid, guidance, provides, view.conditions, encoded)
    for path in view.items("evaluate.metrics"):
        try:
            view.built(path).check(setting)
        except UsageError as error:
            where = locate(error.message, view.entries[path])
            yield RecipeError(f"{view.title(path)}: {error.message}", code=error.code, where=where, fix=error.fix)


CHECKS: tuple[Check, ...] = (
    *(alpha_zero, outputs_that_are_needed, outputs_that_are_trained, trained_schedule, discrete_schedule),
    *(sampling_steps, sampling_start, end_of_the_schedule, warmup, micro_batches, averages),
    *(precision, channels_last, evaluation_without_metrics, metrics_of_the_task, metrics_of_the_model),
)


def no_loss(view: View) -> Iterator[RecipeError]:
    """A codec is trained by one loss or more, and the codec must be one that a recipe trains."""
    if view.value("loss", None) == ():
        yield view.fault(
            "DK105", "loss is an empty list: nothing would be trained", "loss", "list a reconstruction-loss"
        )
    codec = view.built("codec")
    if codec is not None and not isinstance(codec, TrainableCodec):
        message = f"codec {view.name('codec')} is not trained by a recipe"
        yield view.fault("DK124", message, ("codec", "name"), "choose a codec with weights of its own")


def settings_without_effect(view: View) -> Iterator[RecipeError]:
    """A codec and a classifier have no blocks to recompute and no samples to preview."""
    if view.value("task") == "codec" and view.value("train.checkpointing"):
        message = "train.checkpointing has no effect on a codec"
        yield view.fault("DK117", message, "train.checkpointing", "remove it")
    if view.value("task") == "classifier" and view.value("train.sample_every"):
        message = "train.sample_every has no effect on a classifier, which draws no samples"
        yield view.fault("DK117", message, "train.sample_every", "remove it")


def predicted_condition(view: View) -> Iterator[RecipeError]:
    """A classifier predicts a condition of the data that is a class."""
    data, name = view.built("data"), view.value("conditions", LABEL)
    known = [] if data is None else [key for key, spec in data.spec.conditions.items() if spec.classes is not None]
    if data is not None and name not in known:
        message = f"conditions: data {view.name('data')} has no class {name}, which the classifier is to predict"
        yield view.fault("DK115", message, ("conditions", "data"), "choose data with labels", choices=known or "none")


TRAINING_CHECKS: tuple[Check, ...] = (
    *(warmup, micro_batches, averages, channels_last, evaluation_without_metrics),
    *(metrics_of_the_task, settings_without_effect),
)
CODEC_CHECKS: tuple[Check, ...] = (*TRAINING_CHECKS, no_loss)
CLASSIFIER_CHECKS: tuple[Check, ...] = (*TRAINING_CHECKS, predicted_condition)
