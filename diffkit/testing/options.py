"""Find options of a component that change nothing: typing errors, and values that no line reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError
from torch import Tensor

from diffkit.recipe.signature import Parameter, component_parameters

from .case import Case, rebuilt
from .law_registry import LawResult, NotApplicable

Observe = Callable[[Any], list[Tensor]]
"""Returns all numbers that an option may change, for one instance of a component."""
MOST_TRIALS = 40
"""How many pairs of instances are compared before an option is reported."""


def options_used(case: Case, result: LawResult, observe: Observe, *, switches: bool = True) -> None:
    """Require that each number and each choice among the options of a component changes what it computes.

    An option is changed alone, and then beside one other option that is changed too, since many options matter only if
    another is on.

    Args:
        case: the component with its default options.
        result: receives one error for each option without effect.
        observe: the numbers to compare.
        switches: whether options of True and False must change numbers; those of networks may save memory or time.

    Raises:
        NotApplicable: the options are not the defaults, or none can be changed.
    """
    cls: type = type(case.component)
    if case.options not in ({}, getattr(cls, "law_base", {}), {"example": "law_example"}):
        raise NotApplicable("tested with default options only")
    found = {
        p.name: values
        for p in component_parameters(cls, case.kind)
        if p.role == "option" and (values := _others(p, _current(case, p), switches))
    }
    if not found:
        raise NotApplicable("no option is a number or a choice")
    for name, values in found.items():
        verdict = _has_effect(case, observe, name, found)
        if verdict is not None:
            result.holds(verdict, f"{name} = {values[0]} and other values change nothing", f"an effect of {name}")


def _has_effect(case: Case, observe: Observe, name: str, found: Mapping[str, list[Any]]) -> bool | None:
    """Return whether the option changes a number; None if no other value can be built."""
    declared = [{k: v for k, v in one.items() if k != name} for one in getattr(case.component, "law_options", ())]
    beside = [{other: value} for other, values in found.items() if other != name for value in values]
    tried = False
    for base, value in islice(((b, v) for b in ({}, *declared, *beside) for v in found[name]), MOST_TRIALS):
        before = _observed(case, observe, base)
        after = _observed(case, observe, {**base, name: value})
        if not isinstance(before, list) or after is None:
            continue
        tried = True
        if isinstance(after, str) or len(before) != len(after):
            return True
        if not all(_same(a, b) for a, b in zip(before, after, strict=True)):
            return True
    return False if tried else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.eq(a, b).logical_or(a.isnan() & b.isnan()).all())


def _observed(case: Case, observe: Observe, options: Mapping[str, Any]) -> list[Tensor] | str | None:
    """Return the numbers, the name of the error that computing them raises, or None if it cannot be built."""
    try:
        component = rebuilt(case, **options)
    except Exception:  # noqa: BLE001 - a constructor may refuse a value by any error
        return None
    try:
        return [value.detach().clone() for value in observe(component)]
    except Exception as error:  # noqa: BLE001 - an error is an effect of the option
        return type(error).__name__


def _current(case: Case, p: Parameter) -> Any:
    return getattr(case.component, p.name, {**case.options}.get(p.name, p.default))


def _others(p: Parameter, now: Any, switches: bool) -> list[Any]:
    return [value for value in _candidates(p, now, switches) if value != now and _allowed(p, value)]


def _candidates(p: Parameter, now: Any, switches: bool) -> Iterator[Any]:
    if get_origin(p.annotation) is Literal:
        yield from get_args(p.annotation)
    elif isinstance(now, bool):
        yield from (not now,) if switches else ()
    elif isinstance(now, int):
        yield from (now // 2, now + 1, now - 1, 2 * now, 1)
    elif isinstance(now, float):
        yield from (0.5 * now, 2.0 * now, 10.0 * now, 0.1 * now, 1.0, 0.0, 0.5)


def _allowed(p: Parameter, value: Any) -> bool:
    try:
        p.adapter.validate_python(value)
    except ValidationError:
        return False
    return True
