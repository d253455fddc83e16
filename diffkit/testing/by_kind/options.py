"""The law of options: each option of a constructor changes what the component does."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain

import torch
from torch import Tensor, nn

from diffkit.codec import TrainableCodec
from diffkit.grid import Grid
from diffkit.recipe.signature import Parameter, component_parameters
from diffkit.schedule import Schedule
from diffkit.times import at_fraction

from ..case import Case, build_cases
from ..law_registry import LawResult, NotApplicable, law
from ..variants import others, with_option
from . import codec, conditioner, data, grid, metric, optimizer, reconstruction_loss, times, weighting

Numbers = Sequence[float | Tensor]
Behaviour = Callable[[Case], Numbers]


def _of_weighting(case: Case) -> Numbers:
    return [weighting.weight_at(case.component, level) for _, level in weighting.every_level(case)]


def _of_times(case: Case) -> Numbers:
    found: list[Tensor] = []
    for schedule in times.SCHEDULES.values():
        learned = times.learned(case, schedule)
        t = learned.draw(times.evenly_spread(128), schedule)
        factor = learned.correction(t, schedule)
        found += [t] if factor is None else [t, factor]
    return found


def _of_schedule(case: Case) -> Numbers:
    schedule: Schedule = case.component
    t = at_fraction(torch.linspace(0, 1, 33, dtype=torch.float64), schedule)
    level = schedule.level(t)
    return [schedule.t_clean, schedule.t_noise, torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)]


def _of_grid(case: Case) -> Numbers:
    made: Grid = case.component
    return [
        t
        for _, schedule in grid.schedules(made)
        for n in (1, 12)
        if n <= (schedule.steps or n)
        for t in made.times(schedule, n)
    ]


def _of_codec(case: Case) -> Numbers:
    x = codec.images(case)
    z = case.component.encode(x)
    noise = case.normal(*z.shape, stream="noise", dtype=torch.float32)
    found = [z, case.component.encode(x, noise), case.component.decode(z)]
    if isinstance(case.component, TrainableCodec):
        trained = copy.deepcopy(case.component).train()
        for out in (trained(x, noise), trained(x, noise)):  # what the first step learns changes the second
            found += [out.x, *out.terms.values()]
    return found


def _of_reconstruction_loss(case: Case) -> Numbers:
    x = reconstruction_loss.examples(case)
    out = reconstruction_loss.reconstruction(case, x)
    found = [case.component(out, x, step) for step in reconstruction_loss.STEPS]
    given = reconstruction_loss.detached(out)
    return found if case.component.critic is None else [*found, case.component.critic_loss(given, x, 0)]


def _of_conditioner(case: Case) -> Numbers:
    return [*conditioner.parts(case.component(conditioner.raw_conditions(case)))]


def _of_metric(case: Case) -> Numbers:
    return list(chain.from_iterable(case.component(one).values() for one in metric.evaluations(case).values()))


def _of_optimizer(case: Case) -> Numbers:
    return list(optimizer.trained(case, 4).values())


def _of_rate(case: Case) -> Numbers:
    return [case.component(step, steps) for steps in (10, 1000) for step in range(0, steps, max(1, steps // 20))]


def _of_augmentation(case: Case) -> Numbers:
    x, cond = case.component(*data.augmentation_inputs(case))
    return [x, *(value for _, value in sorted(cond.items()))]


BEHAVIOURS: Mapping[str, Behaviour] = {
    "weighting": _of_weighting,
    "times": _of_times,
    "schedule": _of_schedule,
    "grid": _of_grid,
    "codec": _of_codec,
    "reconstruction-loss": _of_reconstruction_loss,
    "conditioner": _of_conditioner,
    "metric": _of_metric,
    "optimizer": _of_optimizer,
    "lr-schedule": _of_rate,
    "augmentation": _of_augmentation,
}
"""The numbers that a component of each kind computes, by which two of them are compared."""


def options_change(case: Case, result: LawResult) -> None:
    """An option that no line reads, or that another value replaces, misleads the reader of a recipe.

    Every option gets several other values, with each set of `law_options` and in each context; one of them must change
    the results. An option that is meant to change none, such as a number of rows at a time, is exempt by
    `law_exemptions = {"options.NAME": "why"}`.
    """
    if "example" in case.options and not dataclasses.is_dataclass(case.component):
        raise NotApplicable("law_example returns an instance that cannot be built again")
    cls: type = type(case.component)
    for name, found in _effects(case.kind, case.name, cls, case.seed).items():
        if f"options.{name}" not in case.exemptions:
            result.holds(found is None, f"{name}: the same results with {found}", "other results for one value")


for _kind in BEHAVIOURS:
    law(
        _kind,
        name="options",
        statement="each option changes the results, for some value",
        source="the signature of the component",
        tolerance=0.0,
    )(options_change)


@cache
def _effects(kind: str, name: str, cls: type, seed: int) -> dict[str, str | None]:
    """Return the values of each option that were tried in vain, or None for an option that has an effect."""
    cases = list(build_cases(kind, name, cls, seed=seed))
    usual = [_numbers(case) for case in cases]
    return dict(_each_effect(component_parameters(cls, kind), cases, usual))


def _each_effect(
    parameters: Sequence[Parameter], cases: Sequence[Case], usual: Sequence[Tensor | None]
) -> Iterator[tuple[str, str | None]]:
    for parameter in parameters:
        if parameter.role != "option":
            continue
        tried: list[str] = []
        changed = False
        for case, before in ((c, n) for c, n in zip(cases, usual, strict=True) if n is not None):
            current = case.options.get(parameter.name, getattr(case.component, parameter.name, parameter.default))
            for value in () if changed else others(parameter, current):
                other = with_option(case, parameter.name, value)
                after = None if other is None else _numbers(other)
                if after is None:
                    continue
                tried.append(f"{parameter.name} = {value!r}")
                if not (after.shape == before.shape and torch.equal(after, before)):
                    changed = True
                    break
        if changed or tried:
            yield parameter.name, None if changed else ", ".join(dict.fromkeys(tried))


def _numbers(case: Case) -> Tensor | None:
    """Return the results of a component as one vector, nan as a number; None if it raises an error."""
    if isinstance(case.component, nn.Module):
        case.component.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            found = BEHAVIOURS[case.kind](case)
    except Exception:  # noqa: BLE001 - other laws report the error
        return None
    return torch.cat([torch.as_tensor(one).detach().double().flatten() for one in found]).nan_to_num(nan=math.pi)
